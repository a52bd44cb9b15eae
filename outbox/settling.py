"""Transactional handlers: a handler's effects and the success of its delivery are one commit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from django.db import transaction
from dramatiq.middleware import SkipMessage

from .conf import get_settings
from .models import Delivery
from .runs import Run


@contextmanager
def settling(run: Run) -> Generator[None]:
    """Run a handler in a transaction that also records its success.

    Its effects on that database happen once, whatever is duplicated, killed or retried: a copy of the message
    that finds the delivery settled, or another copy at work on it, leaves.

    Raises:
        SkipMessage: if there is nothing left to do.
    """
    with transaction.atomic(using=run.database, durable=True):
        if get_settings().confirm:
            _settle(run)
        yield
    run.settled = get_settings().confirm


def unsettle(run: Run) -> None:
    """Record as discarded the deliveries that turned out to need no run, within the same transaction.

    What the worker reports later says the same; were it lost, nothing would be missing.
    """
    if run.discarded and get_settings().confirm:
        Delivery.objects.using(run.database).unsettle(run.discarded)


def _settle(run: Run) -> None:
    mine = Delivery.objects.using(run.database).settle(run.deliveries)
    if not mine:
        run.left = True
        raise SkipMessage("another copy of the message has settled the delivery, or is at work on it")
    run.keep(delivery for delivery in run.deliveries if delivery in mine)
