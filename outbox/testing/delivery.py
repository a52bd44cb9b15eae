"""Deliveries run inline: claimed, encoded, decoded, run and confirmed in the thread of the test."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dramatiq
from django.db import Error, connections, transaction

from outbox.confirmations import capture_outcomes
from outbox.confirmations.outcome import Outcome
from outbox.errors import OutboxError
from outbox.registry import registry

from .claimed_message import ClaimedMessage, ClaimOptions
from .databases import databases_of_test
from .inline import InlineBroker, coroutines_inline


class TooManyDeliveries(OutboxError):
    """Raised by `deliver` when its limit is reached and another delivery is due."""


@dataclass
class Delivered:
    """The result of `deliver`, in deliveries.

    Args:
        retried: failed runs that were followed by another run.
        errors: the errors of failed deliveries, in their order.
    """

    succeeded: int = 0
    failed: int = 0
    discarded: int = 0
    retried: int = 0
    errors: list[Exception] = field(default_factory=list)

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Count the outcomes of one run."""
        for outcome in outcomes:
            name = outcome.result or outcome.state
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
    """Run all due deliveries, and those that their handlers publish, until none is due.

    Each delivery passes through the message that a relay would send and through the hooks of the project's
    middleware; nothing reaches the broker. Works in a test's own transaction and with real commits.

    Args:
        raise_errors: raise a handler's error, once the delivery is marked as failed.
        retries: runs of a handler after a failed one at most; Dramatiq would wait before each.
        limit: messages at most.
        handlers: run only these handlers.
        now: also run deliveries that are due by this moment, as for a test that freezes Python's clock there.
            Deliveries that are due by the database's clock run as well.
        ahead: also run deliveries that the database's clock makes due within this time.
        using: only this database; all that the outbox serves if not given.

    Raises:
        TooManyDeliveries: if `limit` messages have run and another delivery is due.
        UnknownHandler: for a delivery to a handler that is not registered.
    """
    names = None if handlers is None else [_name_of(handler) for handler in handlers]
    options = ClaimOptions(handlers=names, now=now, ahead=ahead)
    databases = databases_of_test(using)
    delivered = Delivered()
    with coroutines_inline():
        for left in range(limit, -1, -1):
            message = _claim(options, databases, left=left)
            if message is None:
                break
            error = _run(message, retries, delivered)
            if error is not None and raise_errors:
                raise error
    return delivered


def _name_of(handler: str | dramatiq.Actor[..., object]) -> str:
    return registry.get(handler if isinstance(handler, str) else handler.actor_name).name


def _claim(options: ClaimOptions, databases: Sequence[str], *, left: int) -> ClaimedMessage | None:
    for database in databases:
        # The error ends the transaction, and so undoes a claim beyond the limit.
        with transaction.atomic(using=database):
            message = options.claim_from(database)
            if message is not None and not left:
                raise TooManyDeliveries(
                    "deliver() has reached its limit of messages, and more deliveries are due, next to "
                    f"{message.handler!r}; raise limit=…, or look for a handler that publishes the topic "
                    "that it handles"
                )
        if message is not None:
            return message
    return None


def _run(message: ClaimedMessage, retries: int, delivered: Delivered) -> Exception | None:
    """Run a message; return its error if no retry follows."""
    delivered.discarded += message.discard_expired()
    if not message.unexpired:
        return None
    try:
        decoded = message.message()
    except Exception as unsendable:
        delivered.failed += message.fail(f"could not be sent: {unsendable}")
        delivered.errors.append(unsendable)
        return unsendable
    broker = InlineBroker(registry.get(message.handler).actor.broker)
    # A batch that fails runs once more as a whole, as in a worker, before its events run one by one.
    retries = max(retries, 1 if message.batched else 0)
    with capture_outcomes() as outcomes, _kept_transactions():
        error = broker.process(decoded, may_retry=decoded.options.get("retries", 0) < retries)
    # A retry is due at once, and the next claim finds it.
    outcomes = [one._replace(wait=timedelta()) if one.result == "retried" else one for one in outcomes]
    message.confirm(outcomes)
    delivered.count(outcomes)
    if error is None or any(one.result == "retried" for one in outcomes):
        return None
    delivered.errors.append(error)
    return error


@contextmanager
def _kept_transactions() -> Generator[None]:
    """Let a handler's database error end with the handler, and not with the test's transaction.

    Rows that a handler wrote before another kind of error stay, as in a worker without a transaction.
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
