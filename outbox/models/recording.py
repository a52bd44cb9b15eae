"""The statements that write an event with its deliveries, on PostgreSQL: one round trip each."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper

from ..versions import WRITTEN

NO_HEADERS = "{}"


class NewDelivery(NamedTuple):
    """A delivery about to be written: what is the same for every event that goes to its handler.

    Args:
        ordered: whether its lane is that of the event's key.
        held: what keeps it from being claimed by itself (`Delivery.Held`), empty for nothing.
        wait: how long after its event is due it becomes due.
    """

    handler: str
    queue: str
    ordered: bool = False
    held: str = ""
    wait: timedelta = timedelta()

    def lane(self, key: str) -> str:
        """Return the key of its lane, empty for none, for an event with a key."""
        return key if self.ordered else ""


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
    deliveries: tuple[NewDelivery, ...]
    due: datetime | timedelta = timedelta()
    expires: datetime | timedelta | None = None


def record_one(event: NewEvent, connection: BaseDatabaseWrapper) -> None:
    """Write an event without a dedup key, and its deliveries."""
    # PostgreSQL reads these digits as an id. To hand it a UUID takes psycopg twice the time.
    parameters: dict[str, Any] = {"id": event.id.hex, "payload": event.payload}
    if event.key:
        parameters["key"] = event.key
    if headers := event.headers != NO_HEADERS:
        parameters["headers"] = event.headers
    if event.due:
        parameters["due"] = event.due
    if event.expires:
        parameters["expires"] = event.expires
    sql = _insert(
        event.topic, event.deliveries, bool(event.key), headers, _when(event.due), _when(event.expires)
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def record_once(event: NewEvent, connection: BaseDatabaseWrapper) -> bool:
    """Write an event and its deliveries unless its dedup key is taken; return whether it was written."""
    with connection.cursor() as cursor:
        cursor.execute(_ONCE, _once_parameters(event))
        return bool(cursor.fetchone()[0])


# How a time is given to the statement: not at all, as now, as a duration from now, or as a moment.
When = Literal["never", "now", "in", "at"]


def _when(given: datetime | timedelta | None) -> When:
    if not given:
        return "never" if given is None else "now"
    return "at" if isinstance(given, datetime) else "in"


# What a project publishes again and again differs in id, payload and key. All else is part of the text, which
# is put together once, as psycopg takes some microseconds for each parameter.
@lru_cache(maxsize=1024)
def _insert(
    topic: str, deliveries: tuple[NewDelivery, ...], key: bool, headers: bool, due: When, expires: When
) -> str:
    insert = f"""
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES (%(id)s::uuid, {_literal(topic)}, %(payload)s::jsonb, {"%(key)s" if key else "''"},
                {"%(headers)s::jsonb" if headers else "'{}'"}, {WRITTEN:d})
    """  # noqa: S608  # every value is a parameter or quoted by psycopg
    if not deliveries:
        return insert
    rows = (
        ", ".join(
            (
                "%(id)s::uuid",
                _literal(delivery.handler),
                _literal(delivery.queue),
                "%(key)s" if key and delivery.ordered else "''",
                _literal(delivery.held),
                _moment("due", due) + (f" + {_literal(delivery.wait)}" if delivery.wait else ""),
                _moment("expires", expires),
            )
        )
        for delivery in deliveries
    )
    return f"""
        WITH new_event AS ({insert})
        INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at)
        VALUES ({"), (".join(rows)})
    """  # noqa: S608  # likewise


def _literal(value: Any) -> str:
    # Imported late: a site on another database may have no psycopg.
    from psycopg.sql import Literal

    # In a text with parameters a percent sign of its own is doubled.
    return Literal(value).as_string().replace("%", "%%")


def _moment(parameter: str, when: When) -> str:
    if when == "never":
        return "NULL"
    if when == "now":
        return "statement_timestamp()"
    return f"%({parameter})s" if when == "at" else f"statement_timestamp() + %({parameter})s"


# The index of dedup keys decides, also between transactions that are still open. Nothing of a refused event
# is written, and no error ends the caller's transaction.
_ONCE = f"""
WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key, version)
    VALUES (%s::uuid, %s, %s, %s::jsonb, %s::jsonb, %s, {WRITTEN:d})
    ON CONFLICT (topic, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id
), new_delivery AS (
    INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at)
    SELECT new_event.id, handler, queue, lane, held,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM new_event, unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::interval[],
                           %s::timestamptz[], %s::interval[])
        WITH ORDINALITY AS new(handler, queue, lane, held, eta, wait, expires_at, expires_in, position)
    ORDER BY position
)
SELECT count(*) FROM new_event
"""  # noqa: S608  # made of constants


def _once_parameters(event: NewEvent) -> list[Any]:
    deliveries = [
        (
            delivery.handler,
            delivery.queue,
            delivery.lane(event.key),
            delivery.held,
            *_split(event.due, delivery.wait),
            *_split(event.expires),
        )
        for delivery in event.deliveries
    ]
    columns = zip(*deliveries, strict=True) if deliveries else [()] * 8
    return [*event[:6], *map(list, columns)]


def _split(when: datetime | timedelta | None, wait: timedelta = timedelta()) -> tuple[Any, Any]:
    """Return a moment as a point in time and an interval, one of which may be None."""
    if isinstance(when, datetime):
        return when, wait
    return None, None if when is None else when + wait
