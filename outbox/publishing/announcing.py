"""The telemetry signal of published events."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.models import Event, NewEvent
from outbox.observability.telemetry import event_published


def announce_on_commit(written: Iterable[tuple[UUID, NewEvent]], connection: BaseDatabaseWrapper) -> None:
    """Send `event_published` for each new event, after the commit of the current transaction.

    Args:
        written: the events with their ids; an event of a taken dedup key has the id of an earlier event.
    """
    for pk, event in written:
        if pk == event.id:
            connection.on_commit(partial(_announce, event, connection.alias), robust=True)


def _announce(event: NewEvent, database: str) -> None:
    event_published.send_robust(
        Event,
        database=database,
        event_id=str(event.id),
        topic=event.topic,
        key=event.key,
        handlers=[delivery.handler for delivery in event.deliveries],
    )
