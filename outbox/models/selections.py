"""Which deliveries: by the state they are in, and by what is due to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from .states import UNSETTLED, DeliveryStatus, Held

if TYPE_CHECKING:
    from .delivery import Delivery  # noqa: F401  # within quotes below


class Selections(models.QuerySet["Delivery"]):
    """Selections of deliveries, each of which can be narrowed further."""

    def pending(self) -> Self:
        """Keep those that wait to be dispatched, due or not."""
        return self.filter(status=DeliveryStatus.PENDING)

    def due(self, queues: Iterable[str] = ()) -> Self:
        """Keep those that a relay may claim now, in the order in which it does."""
        due = self.pending().filter(held="", available_at__lte=Now()).order_by("available_at", "id")
        return due.filter(queue__in=list(queues)) if queues else due

    def held_for(self, handler: str, wait: timedelta) -> Self:
        """Keep those of a batched handler whose events are due, in the order in which they are."""
        held = self.pending().filter(held=Held.BATCH, handler=handler)
        return held.filter(available_at__lte=Now() + wait).order_by("available_at", "id")

    def unconfirmed(self) -> Self:
        """Keep those handed to the broker whose outcome is not known yet."""
        return self.filter(status=DeliveryStatus.DISPATCHED)

    def overdue(self) -> Self:
        """Keep those whose confirmation should have come by now."""
        return self.unconfirmed().filter(confirm_by__lt=Now())

    def crashed(self) -> Self:
        """Keep those that a worker died of, unless they are settled."""
        return self.filter(crashes__gt=0, status__in=UNSETTLED)

    def failed(self) -> Self:
        """Keep those that wait for an operator."""
        return self.filter(status=DeliveryStatus.FAILED)

    def still_needed(self, failed_retention: timedelta) -> Self:
        """Keep those whose event must not be pruned: unfinished, or failed not long ago."""
        unfinished = Q(status__in=(DeliveryStatus.PENDING, DeliveryStatus.DISPATCHED))
        return self.filter(
            unfinished | Q(status=DeliveryStatus.FAILED, finished_at__gt=Now() - failed_retention)
        )

    def prunable(self, failed_retention: timedelta) -> Self:
        """Keep those that are done with."""
        done = Q(status__in=(DeliveryStatus.SUCCEEDED, DeliveryStatus.DISCARDED))
        return self.filter(done | Q(status=DeliveryStatus.FAILED, finished_at__lte=Now() - failed_retention))

    def lane(self, handler: str, key: str, *, skipping: Sequence[str]) -> Self:
        """Keep the unfinished deliveries of a lane, first in first; a failed one blocks unless skipped."""
        blocking = [DeliveryStatus.PENDING, DeliveryStatus.DISPATCHED]
        if handler not in skipping:
            blocking.append(DeliveryStatus.FAILED)
        return self.filter(handler=handler, key=key, status__in=blocking).exclude(key="").order_by("id")
