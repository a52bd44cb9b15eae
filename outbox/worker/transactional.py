"""Transactional handlers: one commit holds a handler's effects and the success of its delivery."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from django.db import connections, transaction
from dramatiq.middleware import SkipMessage

from outbox.models import Delivery
from outbox.run import Run

from .silent_rollbacks import TransactionGuard


@contextmanager
def settled_transaction(run: Run) -> Generator[None]:
    """Run a handler in a transaction that also records its success.

    Its effects on that database happen once, even if messages are duplicated or retried, or workers killed.
    A duplicate is skipped when the delivery is settled, or when another message of the delivery is running.

    Raises:
        SkipMessage: if no delivery is left to run.
        TransactionRolledBack: if the handler has returned, and the transaction cannot commit.
    """
    with transaction.atomic(using=run.database, durable=True):
        _settle(run)
        with TransactionGuard(connections[run.database], run.handler):
            yield
    run.settled = True


def discard_settled(run: Run) -> None:
    """Record as discarded the deliveries that need no run, within the same transaction.

    The worker reports the same outcome later, but that report may be lost.
    """
    if run.discarded:
        Delivery.objects.using(run.database).discard_settled(run.discarded)


def _settle(run: Run) -> None:
    mine = Delivery.objects.using(run.database).settle(run.deliveries)
    if not mine:
        run.duplicate = True
        raise SkipMessage("another message of the delivery has settled it, or is running")
    run.keep(delivery for delivery in run.deliveries if delivery in mine)
