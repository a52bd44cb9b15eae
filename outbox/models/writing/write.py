"""The write of events and their deliveries, in the current transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now

from outbox.models.clock import to_column
from outbox.models.delivery import Delivery
from outbox.models.event import Event
from outbox.models.new_rows import NewEvent
from outbox.versions import WRITTEN

from . import copy, insert

# Large enough that round trips vanish, small enough that the rows of a chunk take little memory.
CHUNK_ROWS = 5000


def write_event(event: NewEvent, connection: BaseDatabaseWrapper) -> UUID:
    """Write an event and its deliveries; return the id of the event.

    If an event of the topic already has the dedup key, nothing is written, and its id is returned.
    """
    if event.dedup_key is not None:
        return _write_once(event, connection)
    if connection.vendor == "postgresql":
        insert.insert_event(event, connection)
    else:
        _write_portably([event], connection)
    return event.id


def write_events(
    events: Sequence[NewEvent], connection: BaseDatabaseWrapper, *, chunk_rows: int = CHUNK_ROWS
) -> None:
    """Write events without dedup keys, and their deliveries."""
    for start in range(0, len(events), chunk_rows):
        chunk = events[start : start + chunk_rows]
        if connection.vendor != "postgresql":
            _write_portably(chunk, connection)
        elif len(chunk) > copy.FEW_EVENTS:
            copy.copy_events(chunk, connection)
        else:
            for event in chunk:
                insert.insert_event(event, connection)


def _write_once(event: NewEvent, connection: BaseDatabaseWrapper) -> UUID:
    """Write an event unless its dedup key is taken; return the id of the event with that key.

    If a concurrent transaction has written the same key, wait for its end.
    """
    same = Event.objects.using(connection.alias).filter(topic=event.topic, dedup_key=event.dedup_key)
    while True:
        if connection.vendor == "postgresql":
            written = insert.insert_event_once(event, connection)
        elif written := not same.exists():
            _write_portably([event], connection)
        if written:
            return event.id
        existing: UUID | None = same.values_list("pk", flat=True).first()
        # None if the event was pruned between the two statements.
        if existing is not None:
            return existing


def _write_portably(events: Sequence[NewEvent], connection: BaseDatabaseWrapper) -> None:
    """Write events and their deliveries on any database."""
    Event.objects.using(connection.alias).bulk_create([_instance(event) for event in events])
    Delivery.objects.using(connection.alias).bulk_create(
        Delivery(
            event_id=event.id,
            handler=new.handler,
            queue=new.queue,
            key=new.ordering_key(event.key),
            waits_for=new.waits_for,
            available_at=_time(event.due, connection) + new.wait,
            expires_at=None if event.expires is None else _time(event.expires, connection),
        )
        for event in events
        for new in event.deliveries
    )


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


def _time(when: datetime | timedelta, connection: BaseDatabaseWrapper) -> Any:
    return to_column(when, connection) if isinstance(when, datetime) else Now() + when
