"""Filters of deliveries by their state and their times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.db.models import Case, F, Q, When
from django.db.models.functions import Coalesce, Least, Now

from outbox.events import DeliveryRef

from .states import UNSETTLED, DeliveryState, WaitsFor

if TYPE_CHECKING:
    from .delivery import Delivery  # noqa: F401  # within quotes below


_NOW = Now()

# When a delivery was first due for its next run, even if it was put off or dispatched since. The deliveries
# of a full batch are dispatched before their due times.
_DISPATCHED_EARLY = Least("available_at", Coalesce("dispatched_at", "available_at"))
DUE_SINCE = Coalesce(
    "due_since",
    Case(When(state=DeliveryState.DISPATCHED, then=_DISPATCHED_EARLY), default=F("available_at")),
)


class DeliveryFilters(models.QuerySet["Delivery"]):
    """Filters of deliveries; each returns a queryset that can be filtered further."""

    def ids_of(self, deliveries: Collection[DeliveryRef]) -> list[int]:
        """Return the ids of those deliveries that exist with the same event."""
        rows = self.filter(pk__in=[one.id for one in deliveries]).values_list("pk", "event_id")
        wanted = set(deliveries)
        return [pk for pk, event_id in rows if DeliveryRef(pk, str(event_id)) in wanted]

    def pending(self) -> Self:
        """Keep deliveries that are not dispatched yet, due or not."""
        return self.filter(state=DeliveryState.PENDING)

    def due(self, queues: Iterable[str] = ()) -> Self:
        """Keep deliveries that a relay may claim now, in the order of its claim."""
        due = self.pending().filter(waits_for="", available_at__lte=Now()).order_by("available_at", "id")
        return due.filter(queue__in=list(queues)) if queues else due

    def put_off(self) -> Self:
        """Keep deliveries that were due and are pending again without a run."""
        return self.pending().filter(waits_for="", due_since__isnull=False)

    def waiting_for_batch(self, handler: str, wait: timedelta, *, now: Any = _NOW) -> Self:
        """Keep deliveries of a batch handler whose events are due, in the order of their due times.

        Args:
            wait: how long a delivery waits for its batch: its event is due that long before it.
            now: the present, as a database expression.
        """
        waiting = self.pending().filter(waits_for=WaitsFor.BATCH, handler=handler)
        return waiting.filter(available_at__lte=now + wait).order_by("available_at", "id")

    def unconfirmed(self) -> Self:
        """Keep dispatched deliveries, whose outcome is not known yet."""
        return self.filter(state=DeliveryState.DISPATCHED)

    def overdue(self) -> Self:
        """Keep dispatched deliveries that no worker has confirmed in time."""
        return self.unconfirmed().filter(confirm_by__lt=Now())

    def crashed(self) -> Self:
        """Keep unsettled deliveries whose run has crashed a worker."""
        return self.filter(crashes__gt=0, state__in=UNSETTLED)

    def failed(self) -> Self:
        """Keep failed deliveries."""
        return self.filter(state=DeliveryState.FAILED)

    def still_needed(self, failed_retention: timedelta) -> Self:
        """Keep deliveries whose event must not be pruned: unfinished, or failed within `failed_retention`."""
        unfinished = Q(state__in=(DeliveryState.PENDING, DeliveryState.DISPATCHED))
        return self.filter(
            unfinished | Q(state=DeliveryState.FAILED, finished_at__gt=Now() - failed_retention)
        )

    def prunable(self, failed_retention: timedelta) -> Self:
        """Keep deliveries that may be pruned."""
        done = Q(state__in=(DeliveryState.SUCCEEDED, DeliveryState.DISCARDED))
        return self.filter(done | Q(state=DeliveryState.FAILED, finished_at__lte=Now() - failed_retention))

    def unfinished_of_key(self, handler: str, key: str, *, skipping: Sequence[str]) -> Self:
        """Keep deliveries that block their ordering key, in order.

        Args:
            skipping: handlers whose failed deliveries do not block their key.
        """
        blocking = [DeliveryState.PENDING, DeliveryState.DISPATCHED]
        if handler not in skipping:
            blocking.append(DeliveryState.FAILED)
        return self.filter(handler=handler, key=key, state__in=blocking).exclude(key="").order_by("id")
