"""Deliveries run inline: claimed, encoded, decoded, run and confirmed in the thread of the test."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dramatiq
from django.db import Error, connections, transaction

from outbox.conf import get_settings
from outbox.confirmations import confirm, confirmations
from outbox.errors import OutboxError
from outbox.models import HandlerStats, Tally
from outbox.outcomes import Outcome
from outbox.registry import registry

from .claim import InlineClaim, Letter
from .databases import databases_of_test
from .inline import InlineBroker, coroutines_inline


class TooManyDeliveries(OutboxError):
    """Raised by `deliver` when its limit is reached and something is still due."""


@dataclass
class Delivered:
    """What `deliver` did, in deliveries.

    Args:
        retried: failed runs that were followed by another run.
        errors: the errors of failed deliveries, in their order.
    """

    succeeded: int = 0
    failed: int = 0
    discarded: int = 0
    retried: int = 0
    errors: list[Exception] = field(default_factory=list)

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Count the outcomes of one run."""
        for outcome in outcomes:
            name = outcome.verdict or outcome.status
            if name in ("succeeded", "failed", "discarded", "retried"):
                setattr(self, name, getattr(self, name) + 1)


def deliver(
    *,
    raise_errors: bool = True,
    retries: int = 0,
    limit: int = 1000,
    handlers: Iterable[str | dramatiq.Actor[..., object]] | None = None,
    now: datetime | None = None,
    ahead: timedelta = timedelta(),
    using: str | None = None,
) -> Delivered:
    """Run what is due, and what its handlers publish, until nothing is.

    Each delivery goes through the message that a relay would send and through the hooks of the project's
    middleware; nothing reaches the broker. Works in a test's own transaction and with real commits.

    Args:
        raise_errors: raise a handler's error, once the delivery is marked as failed.
        retries: run a handler that fails again at once, so often at most, as Dramatiq would after a while.
        limit: messages at most.
        handlers: run only these handlers.
        now: take as due what is due by this moment, as when Python's clock is frozen there. The database's
            clock goes on, so what it says is due is due as well.
        ahead: take as due what is due so much later, by the database's clock.
        using: only this database; all that the outbox serves if not given.

    Raises:
        TooManyDeliveries: if `limit` messages have run and more is due.
        UnknownHandler: for a delivery to a handler that is not registered.
    """
    names = None if handlers is None else [_name_of(handler) for handler in handlers]
    claim = InlineClaim(handlers=names, now=now, ahead=ahead)
    databases = databases_of_test(using)
    delivered = Delivered()
    with coroutines_inline():
        for left in range(limit, -1, -1):
            letter = _take(claim, databases, left=left)
            if letter is None:
                break
            error = _deliver_one(letter, retries, delivered)
            if error is not None and raise_errors:
                raise error
    return delivered


def _name_of(handler: str | dramatiq.Actor[..., object]) -> str:
    return registry.get(handler if isinstance(handler, str) else handler.actor_name).name


def _take(claim: InlineClaim, databases: Sequence[str], *, left: int) -> Letter | None:
    for database in databases:
        # A claim that is refused for the limit's sake is undone.
        with transaction.atomic(using=database):
            letter = claim.take(database)
            if letter is not None and not left:
                raise TooManyDeliveries(
                    f"the limit of deliver() is reached, and more is due, next to {letter.handler!r}; raise "
                    "limit=…, or look for a handler that publishes what it handles"
                )
        if letter is not None:
            return letter
    return None


def _deliver_one(letter: Letter, retries: int, delivered: Delivered) -> Exception | None:
    """Run one claimed message until it succeeds or its retries are used up; return its error."""
    delivered.discarded += len(letter.expired)
    if not letter.deliveries:
        return None
    try:
        message = letter.message()
    except Exception as unsendable:
        letter.fail(f"could not be sent: {unsendable}")
        delivered.failed += len(letter.deliveries)
        delivered.errors.append(unsendable)
        return unsendable
    broker = InlineBroker(registry.get(letter.handler).actor.broker)
    # A batch that fails goes again as a whole, as in a worker, before its events go one by one.
    for left in range(max(retries, 1 if letter.batched else 0), -1, -1):
        with confirmations.diverted() as outcomes, _kept_transactions():
            error = broker.process(message, may_retry=left > 0)
        _confirm(outcomes, letter.database)
        delivered.note(outcomes)
        if not any(outcome.verdict == "retried" and outcome.status == "dispatched" for outcome in outcomes):
            break
    if error is not None:
        delivered.errors.append(error)
    return error


@contextmanager
def _kept_transactions() -> Generator[None]:
    """Let a handler's database error end with the handler, and not with the test's transaction.

    What the handler wrote before another kind of error stays, as it does in a worker without a transaction.
    """
    with ExitStack() as stack:
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                stack.callback(_end_savepoint, connection.alias, connection.savepoint())
        yield


def _end_savepoint(alias: str, savepoint: str | None) -> None:
    if savepoint is None:
        return
    try:
        transaction.savepoint_commit(savepoint, using=alias)
    except Error:
        transaction.set_rollback(False, using=alias)
        transaction.savepoint_rollback(savepoint, using=alias)


def _confirm(outcomes: Sequence[Outcome], database: str) -> None:
    """Write outcomes as the flush of a worker does, but now and in the test's own transaction."""
    settings = get_settings()
    tallies: dict[str, Tally] = {}
    for outcome in outcomes:
        if outcome.verdict:
            tallies.setdefault(outcome.handler, Tally()).count(outcome.verdict, outcome.duration_s)
    with transaction.atomic(using=database):
        if settings.confirm:
            # A transactional handler has recorded its success itself.
            confirm([outcome for outcome in outcomes if outcome.status], database)
        if settings.stats:
            HandlerStats.objects.using(database).add(tallies)
