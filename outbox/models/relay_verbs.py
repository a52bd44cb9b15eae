"""The verbs of a relay: on deliveries that it has just claimed, that are overdue, or that wait."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import F
from django.db.models.functions import Least, Now

from .delivery_filters import DUE_SINCE
from .row_locks import brief_transaction, unlocked
from .states import DeliveryState, WaitsFor

if TYPE_CHECKING:
    from .delivery_verbs import DeliveryQuerySet

EXPIRED = "expired before it was dispatched"
NEVER_CONFIRMED = "never confirmed: {} dispatches, and no worker reported an outcome"

# The largest value of a smallint column.
MAX_COUNT = 32767


def mark_dispatched(deliveries: DeliveryQuerySet, confirm_timeout: timedelta) -> int:
    """Mark pending deliveries as dispatched."""
    return deliveries.pending().update(
        state=DeliveryState.DISPATCHED,
        attempts=Least(F("attempts") + 1, MAX_COUNT),
        dispatched_at=Now(),
        confirm_by=Now() + confirm_timeout,
        owner=None,
    )


def postpone(deliveries: DeliveryQuerySet, delay: timedelta, reason: str) -> int:
    """Return claimed deliveries that were not sent to pending, due after `delay`, without an attempt."""
    deliveries.update(attempts=F("attempts") - 1)
    return deliveries.reschedule(delay, reason)


def refuse(deliveries: DeliveryQuerySet) -> dict[int, int]:
    """Count that the broker refused claimed deliveries, and take their attempt back.

    Returns:
        How often each delivery has been refused, by id.
    """
    deliveries.update(attempts=F("attempts") - 1, refusals=Least(F("refusals") + 1, MAX_COUNT))
    return dict(deliveries.values_list("pk", "refusals"))


def expire(deliveries: DeliveryQuerySet) -> int:
    """Discard claimed deliveries whose event has expired."""
    return deliveries.update(state=DeliveryState.DISCARDED, finished_at=Now(), confirm_by=None, error=EXPIRED)


def put_to_wait(deliveries: DeliveryQuerySet, waits_for: WaitsFor) -> int:
    """Return claimed deliveries to pending, to wait for a condition instead of a due time."""
    return deliveries.update(
        state=DeliveryState.PENDING,
        attempts=F("attempts") - 1,
        waits_for=waits_for,
        confirm_by=None,
        finished_at=None,
    )


def resume(deliveries: DeliveryQuerySet, handler: str, *, limit: int) -> int:
    """Make deliveries of a handler that was paused due, except locked ones; return how many."""
    waiting = deliveries.pending().filter(waits_for=WaitsFor.RESUME, handler=handler).order_by("id")
    return _end_waits(deliveries, waiting, limit=limit)


def end_stale_waits(deliveries: DeliveryQuerySet, *, paused: Any, batched: Iterable[str], limit: int) -> int:
    """End the waits whose condition no longer exists, except those of locked rows; return how many.

    A relay may put deliveries of a handler to wait in the moment in which an operator resumes it. A handler
    that had batches when an event was published may have none now.

    Args:
        paused: the handlers that are paused, as a list or a query.
        batched: the handlers that have batches in this process.
        limit: deliveries at most.
    """
    pending = deliveries.pending()
    stale = pending.filter(waits_for=WaitsFor.RESUME).exclude(handler__in=paused)
    stale |= pending.filter(waits_for=WaitsFor.BATCH).exclude(handler__in=list(batched))
    # The order of an index: without it the planner may prefer to read the whole table.
    return _end_waits(deliveries, stale.order_by("handler", "id"), limit=limit)


def _end_waits(deliveries: DeliveryQuerySet, waiting: DeliveryQuerySet, *, limit: int) -> int:
    # Usually none, and a transaction would cost more statements. `exists` would drop the order of the index.
    if not waiting.values_list("pk", flat=True)[:1]:
        return 0
    with brief_transaction(deliveries.db):
        ids = list(unlocked(waiting).values_list("pk", flat=True)[:limit])
        return deliveries.filter(pk__in=ids).end_wait()


def extend_confirm_by(deliveries: DeliveryQuerySet, timeout: timedelta) -> int:
    """Wait longer for the confirmation of overdue deliveries."""
    with brief_transaction(deliveries.db):
        ids = list(unlocked(deliveries.overdue()).values_list("pk", flat=True))
        return deliveries.filter(pk__in=ids).update(confirm_by=Now() + timeout)


def redeliver_overdue(
    deliveries: DeliveryQuerySet, *, limit: int, max_redeliveries: int
) -> tuple[list[int], list[int]]:
    """Redeliver overdue deliveries, and fail those that were redelivered `max_redeliveries` times.

    Returns:
        The ids of the deliveries that went back to pending, and of those that failed.
    """
    rows = unlocked(deliveries.overdue().order_by("confirm_by"))
    with brief_transaction(deliveries.db):
        overdue = dict(rows.values_list("pk", "redeliveries")[:limit])
        exhausted = [pk for pk, redeliveries in overdue.items() if redeliveries >= max_redeliveries]
        redelivered = [pk for pk, redeliveries in overdue.items() if redeliveries < max_redeliveries]
        deliveries.filter(pk__in=exhausted).fail(never_confirmed(max_redeliveries))
        deliveries.filter(pk__in=redelivered).update(
            state=DeliveryState.PENDING,
            available_at=Now(),
            due_since=DUE_SINCE,
            waits_for="",
            confirm_by=None,
            redeliveries=Least(F("redeliveries") + 1, MAX_COUNT),
        )
    return redelivered, exhausted


def never_confirmed(max_redeliveries: int) -> str:
    """Return the error of a delivery that was redelivered `max_redeliveries` times."""
    return NEVER_CONFIRMED.format(max_redeliveries + 1)


def redeliver_lost(deliveries: DeliveryQuerySet) -> int:
    """Redeliver dispatched deliveries whose message a broker has lost, as often as it loses them.

    The redelivery counts as a resend: its message is a possible duplicate, and the delivery is not at fault.
    """
    return _resend(deliveries.unconfirmed())


def redeliver_orphans(deliveries: DeliveryQuerySet, *, limit: int) -> int:
    """Redeliver dispatched deliveries whose process died with their messages; return how many.

    Rows that a transaction of the dead process still locks are skipped.
    """
    orphans = unlocked(deliveries.unconfirmed())
    return _resend(deliveries.filter(pk__in=list(orphans.values_list("pk", flat=True)[:limit])))


def _resend(deliveries: DeliveryQuerySet) -> int:
    return deliveries.update(
        state=DeliveryState.PENDING,
        available_at=Now(),
        due_since=DUE_SINCE,
        waits_for="",
        confirm_by=None,
        resends=Least(F("resends") + 1, MAX_COUNT),
    )
