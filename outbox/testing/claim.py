"""One claim at a time for the testing kit, with due times that a test may move."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dramatiq
from django.db import connections
from django.db.models import BooleanField, Exists, ExpressionWrapper, OuterRef, Q
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.errors import OutboxError
from outbox.models import Delivery, DeliveryQuerySet, Event, PausedHandler
from outbox.registry import Batching, registry

# The one place besides the command where the app needs the relay: tests are worth what their messages are.
from relay.batches import OutgoingBatch
from relay.claimed import Claimed
from relay.messages import Outgoing
from relay.splicing import Kind, Template


@dataclass(frozen=True)
class Letter:
    """Claimed deliveries that one message carries: one, unless the handler is batched.

    Args:
        expired: those that were claimed too late to be sent.
    """

    database: str
    handler: str
    deliveries: Sequence[Delivery]
    expired: Sequence[Delivery]
    batched: bool

    @classmethod
    def of(cls, rows: Sequence[Delivery], database: str, *, batched: bool) -> Letter | None:
        """Make a letter of annotated rows, None if there is none."""
        if not rows:
            return None
        expired = [row for row in rows if row.expired]  # type: ignore[attr-defined]  # an annotation
        kept = [row for row in rows if row not in expired]
        return cls(database, rows[0].handler, kept, expired, batched)

    def mark_dispatched(self) -> None:
        """Record that the deliveries go out, and end those that are too late."""
        settings = get_settings()
        self._rows(self.deliveries).mark_dispatched(settings.confirm_timeout if settings.confirm else None)
        if self.expired:
            self._rows(self.expired).expire()

    def fail(self, error: str) -> None:
        """End the deliveries as failed, with the reason."""
        self._rows(self.deliveries).fail(error)

    def message(self) -> dramatiq.Message[Any]:
        """Return the message as a worker decodes it from what the relay would have sent.

        Raises:
            UnknownHandler: if the handler is not registered.
            ValueError: if an event cannot be sent.
        """
        handler = registry.get(self.handler)
        claimed = self._claimed()
        kind: Kind = "actor" if handler.kind == "actor" else "event"
        template = Template(self.handler, actor=handler.actor, kind=kind, database=self.database)
        outgoing = OutgoingBatch(claimed, template) if self.batched else Outgoing(claimed[0], template)
        return dramatiq.Message.decode(outgoing.body())

    def _rows(self, deliveries: Sequence[Delivery]) -> DeliveryQuerySet:
        rows: DeliveryQuerySet = Delivery.objects.using(self.database)
        return rows.filter(pk__in=[delivery.pk for delivery in deliveries])

    def _claimed(self) -> list[Claimed]:
        ids = {delivery.event_id for delivery in self.deliveries}
        events = Event.objects.using(self.database).in_bulk(ids)
        for missing in ids - events.keys():
            raise OutboxError(f"the event {missing} of a delivery to {self.handler!r} does not exist")
        return [_claimed(delivery, events[delivery.event_id]) for delivery in self.deliveries]


@dataclass(frozen=True, kw_only=True)
class InlineClaim:
    """What `deliver` takes as due.

    Args:
        handlers: only deliveries to these; None for all.
        now: what is due by this moment is due.
        ahead: what is due so much after the database's own time is due.
    """

    handlers: Sequence[str] | None
    now: datetime | None
    ahead: timedelta

    def take(self, database: str) -> Letter | None:
        """Claim the next message within the current transaction, None if nothing is due."""
        letter = self._single(database) or self._batch(database)
        if letter is not None:
            letter.mark_dispatched()
        return letter

    def _single(self, database: str) -> Letter | None:
        rows = self._pending(database).filter(self._by("available_at"), _ahead_in_lane(database))
        # A relay may have held what a lane has reached by now.
        rows = rows.filter(held__in=("", Delivery.Held.LANE)).order_by("available_at", "id")
        return Letter.of(_locked(rows, 1), database, batched=False)

    def _batch(self, database: str) -> Letter | None:
        for name, handler in registry.handlers.items():
            if handler.batch is None or (self.handlers is not None and name not in self.handlers):
                continue
            rows = self._of_batch(database, name, handler.batch)
            if rows:
                return Letter.of(rows, database, batched=True)
        return None

    def _of_batch(self, database: str, handler: str, batch: Batching) -> list[Delivery]:
        rows = self._pending(database).filter(handler=handler, held=Delivery.Held.BATCH)
        rows = rows.filter(self._by("available_at", batch.wait)).annotate(
            ripe=_says(self._by("available_at"))
        )
        found = _locked(rows.order_by("id"), batch.size)
        complete = len(found) == batch.size or any(row.ripe for row in found)  # type: ignore[attr-defined]
        return found if complete else []

    def _pending(self, database: str) -> DeliveryQuerySet:
        paused = PausedHandler.objects.using(database).values("handler")
        rows: DeliveryQuerySet = Delivery.objects.using(database).pending().exclude(handler__in=paused)
        rows = rows.annotate(expired=_says(Q(expires_at__isnull=False) & self._by("expires_at")))
        return rows if self.handlers is None else rows.filter(handler__in=self.handlers)

    def _by(self, moment: str, wait: timedelta = timedelta()) -> Q:
        """Say that a column's moment has come, by the reckoning of the test."""
        # Always as a sum: SQLite compares times as text, and writes a sum with more digits than Now().
        come = Q(**{f"{moment}__lte": Now() + self.ahead + wait})
        return come if self.now is None else come | Q(**{f"{moment}__lte": self.now + wait})


def _says(condition: Q) -> ExpressionWrapper[Q]:
    return ExpressionWrapper(condition, output_field=BooleanField())


def _ahead_in_lane(database: str) -> Q:
    """Keep what has no unfinished delivery before it in its lane."""
    blocks = Q(status=Delivery.Status.FAILED) & ~Q(handler__in=registry.skipping())
    blocks |= Q(status__in=(Delivery.Status.PENDING, Delivery.Status.DISPATCHED))
    before = Delivery.objects.using(database).filter(
        blocks,
        Q(id__lt=OuterRef("id")) | Q(status=Delivery.Status.DISPATCHED),
        handler=OuterRef("handler"),
        key=OuterRef("key"),
    )
    return Q(key="") | ~Q(Exists(before))


def _locked(rows: DeliveryQuerySet, limit: int) -> list[Delivery]:
    features = connections[rows.db].features
    if features.has_select_for_update_skip_locked:
        rows = rows.select_for_update(skip_locked=True, no_key=features.has_select_for_no_key_update)
    return list(rows[:limit])


def _claimed(delivery: Delivery, event: Event) -> Claimed:
    return Claimed(
        delivery_id=delivery.pk,
        event_id=str(delivery.event_id),
        handler=delivery.handler,
        queue=delivery.queue,
        key=event.key,
        attempts=delivery.attempts + 1,
        redeliveries=delivery.redeliveries,
        topic=event.topic,
        payload=json.dumps(event.payload),
        headers=json.dumps(event.headers),
        created_at=event.created_at.isoformat(),
    )
