"""The statements that write events with their deliveries, on PostgreSQL: one round trip each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections

from ..versions import WRITTEN

# Rows per statement of a bulk publish: large enough that the round trip vanishes, small enough that one
# statement's parameters stay far under the protocol's and the server's limits.
RECORD_CHUNK = 1000


class NewDelivery(NamedTuple):
    """A delivery about to be written.

    Args:
        held: what keeps it from being claimed by itself (`Delivery.Held`), empty for nothing.
        wait: how long after its event is due it becomes due.
    """

    handler: str
    queue: str
    key: str
    held: str = ""
    wait: timedelta = timedelta()


class NewEvent(NamedTuple):
    """An event about to be written; payload and headers are JSON text.

    Args:
        due: a moment, or how long after the statement, by the database clock.
        expires: likewise; None for never.
    """

    id: UUID
    topic: str
    key: str
    payload: str
    headers: str
    dedup_key: str | None
    deliveries: Sequence[NewDelivery]
    due: datetime | timedelta = timedelta()
    expires: datetime | timedelta | None = None


def record(events: Sequence[NewEvent], database: str) -> None:
    """Write up to `RECORD_CHUNK` events and their deliveries."""
    sql, parameters = _one(events[0]) if len(events) == 1 else _many(events)
    with connections[database].cursor() as cursor:
        cursor.execute(sql, parameters)


def record_once(event: NewEvent, database: str) -> bool:
    """Write an event and its deliveries unless its dedup key is taken; return whether it was written."""
    _sql, parameters = _many([event])
    with connections[database].cursor() as cursor:
        cursor.execute(_ONCE, parameters)
        return bool(cursor.fetchone()[0])


_INSERT_EVENT = f"""
INSERT INTO outbox_event (id, topic, payload, key, headers, dedup_key, version)
VALUES (%s, %s, %s::jsonb, {{key}}, {{headers}}, {{dedup_key}}, {WRITTEN:d})
"""  # noqa: S608  # made of constants

_INSERT_DELIVERIES = """
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES """


def _one(event: NewEvent) -> tuple[str, list[Any]]:
    key, keys = _text(event.key)
    headers, texts = ("'{}'", ()) if event.headers == "{}" else ("%s::jsonb", (event.headers,))
    dedup_key, once = ("NULL", ()) if event.dedup_key is None else ("%s", (event.dedup_key,))
    insert_event = _INSERT_EVENT.format(key=key, headers=headers, dedup_key=dedup_key)
    parameters: list[Any] = [event.id, event.topic, event.payload, *keys, *texts, *once]
    if not event.deliveries:
        return insert_event, parameters
    expires_at, expiry = ("NULL", ()) if event.expires is None else _moment(event.expires)
    rows = []
    for delivery in event.deliveries:
        # An ordinary event is due now and needs no parameter to say so.
        available_at, due = _moment(event.due + delivery.wait)
        lane, lanes = _text(delivery.key)
        held, holds = _text(delivery.held)
        parameters += (event.id, delivery.handler, delivery.queue, *lanes, *holds, *due, *expiry)
        rows.append(f"(%s, %s, %s, {lane}, {held}, {available_at}, {expires_at})")
    return f"WITH new_event AS ({insert_event}) {_INSERT_DELIVERIES}{', '.join(rows)}", parameters


def _text(value: str) -> tuple[str, tuple[Any, ...]]:
    # What is mostly empty is no parameter then: one costs psycopg about a microsecond.
    return ("%s", (value,)) if value else ("''", ())


def _moment(when: datetime | timedelta) -> tuple[str, tuple[Any, ...]]:
    if isinstance(when, datetime):
        return "%s", (when,)
    return ("statement_timestamp() + %s", (when,)) if when else ("statement_timestamp()", ())


_NEW_EVENTS = f"""
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key, version)
    SELECT id, topic, key, payload::jsonb, headers::jsonb, dedup_key, {WRITTEN:d}
    FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
        AS new(id, topic, key, payload, headers, dedup_key)
"""  # noqa: S608  # made of constants

_NEW_DELIVERIES = """
    INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at)
    SELECT event_id, handler, queue, key, held,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::interval[],
                %s::timestamptz[], %s::interval[])
        WITH ORDINALITY
        AS new(event_id, handler, queue, key, held, eta, wait, expires_at, expires_in, position)
"""

_MANY = f"WITH new_event AS ({_NEW_EVENTS}) {_NEW_DELIVERIES} ORDER BY position"

# The index of dedup keys decides, also between transactions that are still open. Nothing of a refused event
# is written, and no error ends the caller's transaction.
_ONCE = f"""
WITH new_event AS (
    {_NEW_EVENTS} ON CONFLICT (topic, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id
), new_delivery AS (
    {_NEW_DELIVERIES} WHERE EXISTS (SELECT 1 FROM new_event) ORDER BY position
)
SELECT count(*) FROM new_event
"""  # noqa: S608  # made of constants


def _many(events: Sequence[NewEvent]) -> tuple[str, list[Any]]:
    event_columns = zip(*(event[:6] for event in events), strict=True)
    deliveries = [
        (event.id, *delivery[:4], *_split(event.due, delivery.wait), *_split(event.expires))
        for event in events
        for delivery in event.deliveries
    ]
    delivery_columns = zip(*deliveries, strict=True) if deliveries else [()] * 9
    return _MANY, [list(column) for column in (*event_columns, *delivery_columns)]


def _split(when: datetime | timedelta | None, wait: timedelta = timedelta()) -> tuple[Any, Any]:
    """Return a moment as a point in time and an interval, one of which may be None."""
    if isinstance(when, datetime):
        return when, wait
    return None, None if when is None else when + wait
