"""The verbs on deliveries that nobody has confirmed in time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import connections, transaction
from django.db.models import F
from django.db.models.functions import Now

from .states import DeliveryStatus

if TYPE_CHECKING:
    from .verbs import DeliveryQuerySet

NEVER_CONFIRMED = "never confirmed: {} dispatches, and no worker reported an outcome"


def extend(deliveries: DeliveryQuerySet, timeout: timedelta) -> int:
    """Wait longer for the confirmation of overdue deliveries."""
    with transaction.atomic(using=deliveries.db):
        ids = list(_unlocked(deliveries.overdue()).values_list("pk", flat=True))
        return deliveries.filter(pk__in=ids).update(confirm_by=Now() + timeout)


def redeliver_overdue(deliveries: DeliveryQuerySet, *, limit: int, max_redeliveries: int) -> tuple[int, int]:
    """Send again what was never confirmed, or fail it once that has been tried often enough.

    Returns:
        How many went back to pending, and how many failed.
    """
    rows = _unlocked(deliveries.overdue().order_by("confirm_by"))
    with transaction.atomic(using=deliveries.db):
        overdue = dict(rows.values_list("pk", "redeliveries")[:limit])
        spent = [pk for pk, redeliveries in overdue.items() if redeliveries >= max_redeliveries]
        failed = deliveries.filter(pk__in=spent).fail(NEVER_CONFIRMED.format(max_redeliveries + 1))
        again = deliveries.filter(pk__in=overdue.keys() - set(spent)).update(
            status=DeliveryStatus.PENDING,
            available_at=Now(),
            held="",
            confirm_by=None,
            redeliveries=F("redeliveries") + 1,
        )
    return again, failed


def _unlocked(rows: DeliveryQuerySet) -> DeliveryQuerySet:
    """Lock rows for this transaction, passing over those that a transactional handler has locked."""
    if connections[rows.db].features.has_select_for_update_skip_locked:
        return rows.select_for_update(skip_locked=True)
    return rows
