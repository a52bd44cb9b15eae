"""The claim on databases without the fast paths: the same rows, by the ORM."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from django.db import connections
from django.db.models import DurationField, ExpressionWrapper, F, Q
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import Delivery, DeliveryQuerySet, Event, PausedHandler
from outbox.registry import Batching
from outbox.versions import UNWRITTEN

from ..claimed import Claimed
from ..copies import microseconds
from .taken import Taken


@dataclass(frozen=True, kw_only=True)
class PortableClaim:
    """What `Claim` does, in more statements; the payloads of a batch take at most `max_bytes`."""

    database: str
    limit: int
    max_bytes: int
    queues: tuple[str, ...] = ()

    def take(self, *, leave_lanes: bool) -> Taken:
        """Claim due deliveries in the order in which they are due, other than those of lanes if asked to."""
        due = self._deliveries.due(self.queues)
        rows = self._locked(due.filter(key="") if leave_lanes else due)[: self.limit]
        return self._taken(list(rows), of=self.limit)

    def take_lanes(self, *, skipping: Sequence[str]) -> Taken:
        """Claim the first unfinished delivery of each lane; hold those that are due behind another one."""
        due = list(self._deliveries.due(self.queues).exclude(key="")[: self.limit])
        behind = [row for row in due if self._is_behind(row, skipping)]
        self._deliveries.filter(pk__in=[row.pk for row in behind]).update(held=Delivery.Held.LANE)
        taken = self._taken([row for row in due if row not in behind])
        held = frozenset((row.handler, row.key) for row in behind)
        return taken._replace(more=len(due) == self.limit, held_lanes=held)

    def take_batch(self, handler: str, batch: Batching) -> Taken:
        """Claim a batch of one handler, if it is full or its oldest delivery has waited long enough."""
        rows = list(self._locked(self._deliveries.held_for(handler, batch.wait))[: batch.size])
        # Asked while the rows are locked, so that two relays cannot run half a batch each.
        ripe = self._deliveries.filter(pk__in=[row.pk for row in rows], available_at__lte=Now())
        if len(rows) < batch.size and not ripe.exists():
            return Taken([], False)
        return self._taken(rows, of=batch.size)

    def ripe_in(self, batches: Mapping[str, Batching]) -> dict[str, float]:
        """Return, by handler that has held deliveries, in how many seconds a batch of it is to run."""
        paused = self._paused() if batches else ()
        return {name: self._ripe_in(name, rule) for name, rule in batches.items() if name not in paused}

    def due_in(self) -> float:
        """Return in how many seconds the next delivery is due, up to infinity."""
        pending = self._deliveries.pending().filter(held="").order_by("available_at", "id")
        if self.queues:
            pending = pending.filter(queue__in=self.queues)
        wait = pending.annotate(due_in=_DUE_IN).values_list("due_in", flat=True)[:1]
        return next((duration.total_seconds() for duration in wait), inf)

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self.database)
        return deliveries

    def _paused(self) -> frozenset[str]:
        names: frozenset[str] = PausedHandler.objects.using(self.database).names()
        return names

    def _locked(self, rows: DeliveryQuerySet) -> DeliveryQuerySet:
        if connections[self.database].features.has_select_for_update_skip_locked:
            return rows.select_for_update(skip_locked=True)
        return rows

    def _taken(self, rows: Sequence[Delivery], *, of: int = 0) -> Taken:
        # Without a row there is nothing that a pause could keep.
        paused = self._paused() if rows else frozenset()
        return Taken(self._mark(rows), len(rows) == of, paused=paused)

    def _mark(self, rows: Sequence[Delivery]) -> list[Claimed]:
        settings = get_settings()
        events = Event.objects.using(self.database).in_bulk({row.event_id for row in rows})
        expired = self._expired(rows)
        claimed = self._that_fit(_claimed(row, events.get(row.event_id), row.pk in expired) for row in rows)
        taken = self._deliveries.filter(pk__in=[row.delivery_id for row in claimed])
        taken.mark_dispatched(settings.confirm_timeout if settings.confirm else None)
        # One statement has marked them all, at one moment.
        for moment in filter(None, taken.values_list("dispatched_at", flat=True)[:1]):
            claimed = [row._replace(dispatched_at_us=microseconds(moment)) for row in claimed]
        return claimed

    def _that_fit(self, rows: Iterable[Claimed]) -> list[Claimed]:
        """Keep the first ones, as many as fit into a batch's bytes, but at least one."""
        kept: list[Claimed] = []
        size = 0
        for row in rows:
            size += len(row.payload)
            if kept and size > self.max_bytes:
                break
            kept.append(row)
        return kept

    def _expired(self, rows: Sequence[Delivery]) -> set[int]:
        # What was dispatched before it expired may go again.
        perishable = [row.pk for row in rows if row.expires_at is not None and not row.attempts]
        if not perishable:
            return set()
        # Asked of the database, whose clock decides.
        expired = self._deliveries.filter(pk__in=perishable, expires_at__lte=Now())
        return set(expired.values_list("pk", flat=True))

    def _is_behind(self, row: Delivery, skipping: Sequence[str]) -> bool:
        lane = self._deliveries.lane(row.handler, row.key, skipping=skipping)
        return lane.filter(Q(pk__lt=row.pk) | Q(status=Delivery.Status.DISPATCHED)).exists()

    def _ripe_in(self, handler: str, batch: Batching) -> float:
        held = self._deliveries.held_for(handler, batch.wait)
        rows = list(held.annotate(due_in=_DUE_IN).values_list("due_in", flat=True)[: batch.size])
        if len(rows) == batch.size:
            return 0.0
        return min((row.total_seconds() for row in rows), default=inf)


_DUE_IN = ExpressionWrapper(F("available_at") - Now(), output_field=DurationField())


def _claimed(row: Delivery, event: Event | None, expired: bool) -> Claimed:
    return Claimed(
        delivery_id=row.pk,
        event_id=str(row.event_id),
        handler=row.handler,
        queue=row.queue,
        key=event.key if event else "",
        attempts=row.attempts + 1,
        redeliveries=row.redeliveries,
        topic=event.topic if event else "",
        payload=json.dumps(event.payload) if event else "",
        headers=json.dumps(event.headers) if event else "",
        created_at=event.created_at.isoformat() if event else "",
        expired=expired,
        version=event.version if event else UNWRITTEN,
    )
