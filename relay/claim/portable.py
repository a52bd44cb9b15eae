"""The claim with the ORM, for databases without the fast paths and for the testing kit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from django.db import connections
from django.db.models import DurationField, ExpressionWrapper, F, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import Delivery, DeliveryQuerySet, Event, PausedHandler
from outbox.models.clock import to_aware
from outbox.registry import BatchOptions
from outbox.versions import UNWRITTEN
from relay.claimed_delivery import ClaimedDelivery
from relay.messages.dispatch_ids import microseconds

from .result import ClaimResult


@dataclass(frozen=True, kw_only=True)
class PortableClaim:
    """The same claims as `Claim`, in more statements.

    Args:
        database: the database alias.
        limit: deliveries of one claim at most.
        max_bytes: bytes of payloads and headers of one claim at most; its first delivery may be larger.
        queues: claim only deliveries to these queues; empty for all.
        where: claim only deliveries that match.
        now: the time by which deliveries are due and events expire; the database's clock by default.
    """

    database: str
    limit: int
    max_bytes: int
    queues: tuple[str, ...] = ()
    where: Q = field(default_factory=Q)
    now: Combinable = field(default_factory=Now)

    def claim_due(self, *, skip_ordered: bool) -> ClaimResult:
        """Claim due deliveries in the order of their due times, without ordered ones if asked to."""
        due = self._due.filter(key="") if skip_ordered else self._due
        return self._claim(_locked(due, self.limit), more_at=self.limit)

    def claim_ordered(self, *, skipping: Sequence[str], with_keyless: bool = False) -> ClaimResult:
        """Claim the first unfinished delivery of each ordering key, and block due ones behind it.

        Args:
            skipping: handlers whose failed deliveries do not block their key.
            with_keyless: also claim deliveries without an ordering key.
        """
        due = _locked(self._due if with_keyless else self._due.exclude(key=""), self.limit)
        behind = [row for row in due if self._is_behind(row, skipping)]
        self._deliveries.filter(pk__in=[row.pk for row in behind]).update(waits_for=Delivery.WaitsFor.KEY)
        result = self._claim([row for row in due if row not in behind])
        blocked_keys = frozenset((row.handler, row.key) for row in behind)
        return result._replace(more=result.more or len(due) == self.limit, blocked_keys=blocked_keys)

    def claim_batch(self, handler: str, batch: BatchOptions) -> ClaimResult:
        """Claim a batch of one handler, if it is full or its oldest delivery has waited long enough."""
        rows = _locked(self._waiting_for_batch(handler, batch), batch.size)
        # Checked while the rows are locked: two relays cannot dispatch half a batch each.
        ready = self._deliveries.filter(pk__in=[row.pk for row in rows], available_at__lte=self.now)
        if len(rows) < batch.size and not ready.exists():
            return ClaimResult([], False)
        return self._claim(rows, more_at=batch.size)

    def ready_in(self, batches: Mapping[str, BatchOptions]) -> dict[str, float]:
        """Return in how many seconds a batch is ready, by handler that is not paused."""
        paused = self._paused() if batches else ()
        return {name: self._ready_in(name, batch) for name, batch in batches.items() if name not in paused}

    def due_in(self) -> float:
        """Return in how many seconds the next delivery is due, up to infinity."""
        pending = self._pending.annotate(due_in=self._time_left)
        wait = pending.values_list("due_in", flat=True)[:1]
        return next((duration.total_seconds() for duration in wait), inf)

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self.database)
        return deliveries

    @property
    def _pending(self) -> DeliveryQuerySet:
        rows = self._deliveries.pending().filter(self.where, waits_for="").order_by("available_at", "id")
        return rows.filter(queue__in=self.queues) if self.queues else rows

    @property
    def _due(self) -> DeliveryQuerySet:
        return self._pending.filter(available_at__lte=self.now)

    @property
    def _time_left(self) -> ExpressionWrapper[Combinable]:
        return ExpressionWrapper(F("available_at") - self.now, output_field=DurationField())

    def _waiting_for_batch(self, handler: str, batch: BatchOptions) -> DeliveryQuerySet:
        return self._deliveries.filter(self.where).waiting_for_batch(handler, batch.wait, now=self.now)

    def _paused(self) -> frozenset[str]:
        names: frozenset[str] = PausedHandler.objects.using(self.database).names()
        return names

    def _is_behind(self, row: Delivery, skipping: Sequence[str]) -> bool:
        unfinished = self._deliveries.unfinished_of_key(row.handler, row.key, skipping=skipping)
        return unfinished.filter(Q(pk__lt=row.pk) | Q(state=Delivery.State.DISPATCHED)).exists()

    def _ready_in(self, handler: str, batch: BatchOptions) -> float:
        waiting = self._waiting_for_batch(handler, batch).annotate(due_in=self._time_left)
        rows = list(waiting.values_list("due_in", flat=True)[: batch.size])
        if len(rows) == batch.size:
            return 0.0
        return min((row.total_seconds() for row in rows), default=inf)

    def _claim(self, rows: Sequence[Delivery], *, more_at: int = -1) -> ClaimResult:
        # An empty claim needs no list of paused handlers.
        paused = self._paused() if rows else frozenset()
        claimed = self._mark(rows)
        # Fewer rows are claimed than were locked if their bytes exceeded the limit.
        return ClaimResult(claimed, len(rows) == more_at or len(claimed) < len(rows), paused=paused)

    def _mark(self, rows: Sequence[Delivery]) -> list[ClaimedDelivery]:
        events = Event.objects.using(self.database).in_bulk({row.event_id for row in rows})
        expired = self._expired(rows)
        claimed = self._that_fit(_claimed(row, events.get(row.event_id), row.pk in expired) for row in rows)
        marked = self._deliveries.filter(pk__in=[row.delivery_id for row in claimed])
        marked.mark_dispatched(get_settings().confirm_timeout)
        # One statement has marked them all, at one moment.
        for moment in filter(None, marked.values_list("dispatched_at", flat=True)[:1]):
            claimed = [row._replace(dispatched_at_us=microseconds(moment)) for row in claimed]
        return sorted(claimed)

    def _expired(self, rows: Sequence[Delivery]) -> set[int]:
        # An event only expires before its first dispatch.
        perishable = [row.pk for row in rows if row.expires_at is not None and not row.attempts]
        if not perishable:
            return set()
        expired = self._deliveries.filter(pk__in=perishable, expires_at__lte=self.now)
        return set(expired.values_list("pk", flat=True))

    def _that_fit(self, rows: Iterable[ClaimedDelivery]) -> list[ClaimedDelivery]:
        """Return the first rows whose payloads and headers fit into `max_bytes`, one row at least."""
        kept: list[ClaimedDelivery] = []
        size = 0
        for row in rows:
            size += len(row.payload.encode()) + len(row.headers.encode())
            if kept and size > self.max_bytes:
                break
            kept.append(row)
        return kept


def _locked(rows: DeliveryQuerySet, limit: int) -> list[Delivery]:
    features = connections[rows.db].features
    if features.has_select_for_update_skip_locked:
        rows = rows.select_for_update(skip_locked=True, no_key=features.has_select_for_no_key_update)
    return list(rows[:limit])


def _claimed(row: Delivery, event: Event | None, expired: bool) -> ClaimedDelivery:
    created_at = to_aware(event.created_at, event._state.db or "") if event else None
    return ClaimedDelivery(
        delivery_id=row.pk,
        event_id=str(row.event_id),
        handler=row.handler,
        queue=row.queue,
        key=event.key if event else "",
        attempts=row.attempts + 1,
        redeliveries=row.redeliveries,
        resends=row.resends,
        topic=event.topic if event else "",
        payload=json.dumps(event.payload) if event else "",
        headers=json.dumps(event.headers) if event else "",
        created_at=created_at.isoformat() if created_at else "",
        expired=expired,
        version=event.version if event else UNWRITTEN,
        message_options=json.dumps(row.message_options) if row.message_options else "",
        replayed=row.replayed,
    )
