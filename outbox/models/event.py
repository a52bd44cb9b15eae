"""The event table and the one statement that writes an event with its deliveries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Exists, OuterRef
from django.db.models.base import ModelState
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from ..registry import registry
from ..uuid7 import uuid7
from ..versions import UNWRITTEN, WRITTEN
from . import copying, recording
from .recording import NewEvent

MAX_TOPIC_LENGTH = 200
MAX_KEY_LENGTH = 255

# Large enough that round trips vanish, small enough that the rows of a chunk take little memory.
RECORD_CHUNK = 5000


# No methods of a queryset: making one costs a tenth of what a publish does outside of the database.


def record_event(event: NewEvent, connection: BaseDatabaseWrapper) -> UUID:
    """Write an event and its deliveries in the current transaction; return its id.

    If it has a dedup key that is taken, nothing is written, and the id is that of the event that has it.
    """
    if event.dedup_key is not None:
        pk: UUID = Event.objects.using(connection.alias).record_once(event)
        return pk
    if connection.vendor == "postgresql":
        recording.record_one(event, connection)
    else:
        Event.objects.using(connection.alias).record_portably([event])
    return event.id


def record_events(events: Sequence[NewEvent], connection: BaseDatabaseWrapper) -> None:
    """Write events without dedup keys, and their deliveries, in the current transaction."""
    for start in range(0, len(events), RECORD_CHUNK):
        chunk = events[start : start + RECORD_CHUNK]
        if connection.vendor != "postgresql":
            Event.objects.using(connection.alias).record_portably(chunk)
        elif len(chunk) > copying.FEW:
            copying.copy(chunk, connection)
        else:
            for event in chunk:
                recording.record_one(event, connection)


class EventQuerySet(models.QuerySet["Event"]):
    """Verbs on events."""

    def record_once(self, event: NewEvent) -> UUID:
        """Write an event unless its topic has one with its dedup key; return the id of the one that is there.

        A concurrent transaction that has written the same key is waited for.
        """
        same = self.filter(topic=event.topic, dedup_key=event.dedup_key)
        while True:
            connection = connections[self.db]
            if connection.vendor == "postgresql":
                written = recording.record_once(event, connection)
            elif written := not same.exists():
                self.record_portably([event])
            if written:
                return event.id
            existing: UUID | None = same.values_list("pk", flat=True).first()
            # None if it was pruned between the two statements.
            if existing is not None:
                return existing

    def prune_chunk(
        self, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
    ) -> tuple[UUID | None, int]:
        """Delete the oldest events that are done with, and their deliveries.

        An event stays while one of its deliveries is unfinished, or failed less than `failed_retention` ago.

        Args:
            after: where the last chunk ended; None to start from the oldest.
            before: the first id to keep, so that a chunk is a range of the primary key.

        Returns:
            The last id that was looked at (None when there is no more), and how many events were deleted.
        """
        from .delivery import Delivery

        with transaction.atomic(using=self.db):
            last, doomed = self.prunable_chunk(
                after=after, before=before, failed_retention=failed_retention, limit=limit
            )
            # A replay locks the events for which it writes deliveries; these stay.
            locked = self.filter(pk__in=doomed).select_for_update(skip_locked=True)
            doomed = list(locked.values_list("pk", flat=True))
            deliveries = Delivery.objects.using(self.db)
            # Asked again: an operator may retry a failed delivery at this very moment.
            deliveries.filter(event_id__in=doomed).prunable(failed_retention).delete()
            left = Exists(deliveries.filter(event_id=OuterRef("pk")))
            # Deleting reads the rows first, and payloads are the larger part of them.
            deleted, _by_model = self.filter(~left, pk__in=doomed).only("pk").delete()
        return last, deleted

    def prunable_chunk(
        self, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
    ) -> tuple[UUID | None, list[UUID]]:
        """Return what `prune_chunk` would delete; arguments and shape as there, with ids for the count."""
        from .delivery import Delivery

        candidates = self.filter(pk__lt=before).order_by("pk")
        if after is not None:
            candidates = candidates.filter(pk__gt=after)
        ids = list(candidates.values_list("pk", flat=True)[:limit])
        deliveries = Delivery.objects.using(self.db).filter(event_id__in=ids)
        kept = set(deliveries.still_needed(failed_retention).values_list("event_id", flat=True))
        return (ids[-1] if len(ids) == limit else None), [pk for pk in ids if pk not in kept]

    def record_portably(self, events: Sequence[NewEvent]) -> None:
        """Write events and their deliveries on any database."""
        from .delivery import Delivery

        self.bulk_create([_instance(event) for event in events])
        Delivery.objects.using(self.db).bulk_create(
            Delivery(
                event_id=event.id,
                handler=new.handler,
                queue=new.queue,
                key=new.lane(event.key),
                held=new.held,
                available_at=_moment(event.due) + new.wait,
                expires_at=None if event.expires is None else _moment(event.expires),
            )
            for event in events
            for new in event.deliveries
        )


class Event(models.Model):
    """An immutable fact: what happened, to what, and in which context."""

    id = models.UUIDField(_("id"), primary_key=True, default=uuid7, editable=False)
    topic = models.CharField(_("topic"), max_length=MAX_TOPIC_LENGTH)
    key = models.CharField(_("key"), max_length=MAX_KEY_LENGTH, blank=True, db_default="")
    dedup_key = models.CharField(_("dedup key"), max_length=MAX_KEY_LENGTH, null=True, blank=True)  # noqa: DJ001  # only NULLs may repeat
    payload = models.JSONField(_("payload"))
    headers = models.JSONField(_("headers"), default=dict)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    version = models.PositiveSmallIntegerField(_("version"), db_default=UNWRITTEN, editable=False)

    objects: ClassVar[Any] = EventQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("event")
        verbose_name_plural = _("events")
        indexes: ClassVar = [
            # For "what happened to order 7?"; events without a key pay nothing for it.
            models.Index(fields=["key", "id"], name="outbox_event_key", condition=~models.Q(key="")),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["topic", "dedup_key"],
                name="outbox_event_dedup",
                condition=models.Q(dedup_key__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.topic} {self.id}"

    @classmethod
    def written(cls, database: str, pk: UUID, topic: str) -> Event:
        """Return an event of the database whose other fields are read on first use.

        It is what `from_db` makes of these fields, but in a tenth of the time: without a look at every other
        field, and without `pre_init` and `post_init`.
        """
        event = cls.__new__(cls)
        event._state = ModelState()
        event._state.adding = False
        event._state.db = database
        event.id = pk
        event.topic = topic
        return event

    def cancel(self, reason: str = "cancelled") -> int:
        """Discard the deliveries that are not dispatched yet, in the current transaction; return how many."""
        pending = self.deliveries.using(self._state.db).pending()
        return int(pending.discard(reason, skipping=registry.skipping()))


def _instance(event: NewEvent) -> Event:
    payload = json.loads(event.payload)
    return Event(
        id=event.id,
        topic=event.topic,
        key=event.key,
        dedup_key=event.dedup_key,
        # A plain None would be SQL's NULL and not JSON's.
        payload=models.Value(None, models.JSONField()) if payload is None else payload,
        headers=json.loads(event.headers),
        version=WRITTEN,
    )


def _moment(when: datetime | timedelta) -> Any:
    return when if isinstance(when, datetime) else Now() + when
