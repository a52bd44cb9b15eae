"""The statements that write an event with its deliveries, on PostgreSQL: one round trip each."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.models.new_rows import NO_HEADERS, NewDelivery, NewEvent
from outbox.versions import WRITTEN


def insert_event(event: NewEvent, connection: BaseDatabaseWrapper) -> None:
    """Write an event without a dedup key, and its deliveries."""
    # PostgreSQL reads the digits as an id. A UUID would take psycopg twice the time.
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


def insert_event_once(event: NewEvent, connection: BaseDatabaseWrapper) -> bool:
    """Write an event and its deliveries unless its dedup key is taken; return whether it was written."""
    with connection.cursor() as cursor:
        cursor.execute(_ONCE, _once_parameters(event))
        return bool(cursor.fetchone()[0])


# The form of a time in the statement: none, now, a duration from now, or a moment.
When = Literal["never", "now", "in", "at"]


def _when(given: datetime | timedelta | None) -> When:
    if not given:
        return "never" if given is None else "now"
    return "at" if isinstance(given, datetime) else "in"


# The events of a topic mostly differ only in id, payload and key. All other values are part of the cached
# text, because psycopg takes some microseconds for each parameter.
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
                _literal(delivery.waits_for),
                _moment("due", due) + (f" + {_literal(delivery.wait)}" if delivery.wait else ""),
                _moment("expires", expires),
            )
        )
        for delivery in deliveries
    )
    return f"""
        WITH new_event AS ({insert})
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ({"), (".join(rows)})
    """  # noqa: S608  # every value is a parameter or quoted by psycopg


def _literal(value: Any) -> str:
    # Imported late: psycopg needs libpq, which a project on another database may not have installed.
    from psycopg.sql import Literal

    # In a text with parameters a literal percent sign is doubled.
    return Literal(value).as_string().replace("%", "%%")


def _moment(parameter: str, when: When) -> str:
    if when == "never":
        return "NULL"
    if when == "now":
        return "statement_timestamp()"
    return f"%({parameter})s" if when == "at" else f"statement_timestamp() + %({parameter})s"


# The unique index decides, also between transactions that are still open. If the key is taken, nothing is
# written, and the caller's transaction is not aborted by an error.
_ONCE = f"""
WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key, version)
    VALUES (%s::uuid, %s, %s, %s::jsonb, %s::jsonb, %s, {WRITTEN:d})
    ON CONFLICT (topic, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id
), new_delivery AS (
    INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
    SELECT new_event.id, handler, queue, ordering_key, waits_for,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM new_event, unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::interval[],
                           %s::timestamptz[], %s::interval[])
        WITH ORDINALITY AS new(handler, queue, ordering_key, waits_for, eta, wait, expires_at, expires_in,
                               position)
    ORDER BY position
)
SELECT count(*) FROM new_event
"""  # noqa: S608  # made of constants


def _once_parameters(event: NewEvent) -> list[Any]:
    deliveries = [
        (
            delivery.handler,
            delivery.queue,
            delivery.ordering_key(event.key),
            delivery.waits_for,
            *_split(event.due, delivery.wait),
            *_split(event.expires),
        )
        for delivery in event.deliveries
    ]
    columns = zip(*deliveries, strict=True) if deliveries else [()] * 8
    return [*event[:6], *map(list, columns)]


def _split(when: datetime | timedelta | None, wait: timedelta = timedelta()) -> tuple[Any, Any]:
    """Return a time as a moment and an interval, either of which may be None."""
    if isinstance(when, datetime):
        return when, wait
    return None, None if when is None else when + wait
