"""The floors: the work written by hand with psycopg, redis-py and pika."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import redis
from django.db import connection, transaction

from outbox.uuid7 import uuid7
from tests.benchmarks import site
from tests.benchmarks.protocol import Answer, added, measured, serve

from . import outbox
from .dramatiq_site import QUEUE

BATCH = 500

TABLE = """
CREATE TABLE IF NOT EXISTS bench_floor (
    id uuid PRIMARY KEY, topic text NOT NULL, payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
INSERT = "INSERT INTO bench_floor (id, topic, payload) VALUES (%s, %s, %s::jsonb)"
UNNEST = (
    "INSERT INTO bench_floor (id, topic, payload) SELECT * FROM unnest(%s::uuid[], %s::text[], %s::jsonb[])"
)
CLAIM = """
SELECT d.id, e.payload::text FROM outbox_delivery d JOIN outbox_event e ON e.id = d.event_id
WHERE d.state = 'pending' AND d.waits_for = ''
ORDER BY d.available_at, d.id LIMIT %s FOR UPDATE OF d SKIP LOCKED
"""
MARK = "UPDATE outbox_delivery SET state = 'dispatched', dispatched_at = now() WHERE id = ANY(%s)"


def publish(events: int) -> Answer:
    """Write a row in a business transaction, with psycopg's cursor."""
    business = site.Business()
    clear()
    connection.ensure_connection()
    cursor = connection.connection.cursor()
    return added(
        business.bare,
        lambda count: business.with_each(count, lambda: cursor.execute(INSERT, row())),
        events=events,
    )


def publish_by_django(events: int) -> Answer:
    """Write a row in a business transaction, with Django's cursor."""
    business = site.Business()
    clear()

    def insert() -> None:
        with connection.cursor() as cursor:
            cursor.execute(INSERT, row())

    return added(business.bare, lambda count: business.with_each(count, insert), events=events)


def publish_many(events: int) -> Answer:
    """Write rows with COPY."""
    clear()
    return measured(lambda: copy(events), events)


def publish_many_by_unnest(events: int) -> Answer:
    """Write rows with INSERT … SELECT FROM unnest(), a thousand each."""
    clear()
    return measured(lambda: unnest(events), events)


def drain(events: int) -> Answer:
    """Claim, send to the broker and mark, in batches, until no delivery is pending."""
    outbox.fill(events)
    send = _redis() if site.BROKER_URL.startswith("redis") else _rabbitmq()
    with psycopg.connect(**site.connection_options(), autocommit=True) as database:

        def work() -> None:
            while batch(database, send):
                continue

        return measured(work, events)


def row() -> tuple[Any, ...]:
    """Return the values of a row."""
    return uuid7(), "bench.single", json.dumps(site.PAYLOAD)


def copy(events: int) -> None:
    """Write rows with COPY, in one transaction."""
    with (
        transaction.atomic(),
        connection.connection.cursor() as cursor,
        cursor.copy("COPY bench_floor (id, topic, payload) FROM STDIN") as into,
    ):
        for _ in range(events):
            into.write_row(row())


def unnest(events: int) -> None:
    """Write rows with unnest(), in one transaction."""
    with transaction.atomic(), connection.connection.cursor() as cursor:
        for start in range(0, events, 1000):
            rows = [row() for _ in range(min(1000, events - start))]
            cursor.execute(UNNEST, [list(column) for column in zip(*rows, strict=True)])


def batch(database: psycopg.Connection[Any], send: Any) -> bool:
    """Send one batch; return whether there was one."""
    with database.transaction(), database.cursor() as cursor:
        rows = cursor.execute(CLAIM, [BATCH]).fetchall()
        if rows:
            send(rows)
            cursor.execute(MARK, [[pk for pk, _payload in rows]])
        return bool(rows)


def _redis() -> Any:
    client = redis.Redis.from_url(site.BROKER_URL)
    key = f"{site.PREFIX}:{QUEUE}"

    def send(rows: list[tuple[int, str]]) -> None:
        fields: list[str] = []
        for pk, payload in rows:
            fields += (str(uuid.uuid4()), f'{{"queue_name":"{QUEUE}","delivery":{pk},"args":[{payload}]}}')
        with client.pipeline() as pipeline:
            pipeline.execute_command("HSET", f"{key}.msgs", *fields)
            pipeline.execute_command("RPUSH", key, *fields[::2])
            pipeline.execute()

    return send


def _rabbitmq() -> Any:
    from .pipelined import Pipelined

    pipelined = Pipelined(site.BROKER_URL, QUEUE)
    return lambda rows: pipelined.send(
        f'{{"queue_name":"{QUEUE}","delivery":{pk},"args":[{payload}]}}'.encode() for pk, payload in rows
    )


def clear() -> None:
    """Empty the tables and the queues."""
    outbox.clear()
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE bench_floor")


if __name__ == "__main__":
    site.migrate()
    with connection.cursor() as made:
        made.execute(TABLE)
    serve(
        {
            "publish": publish,
            "publish_by_django": publish_by_django,
            "publish_many": publish_many,
            "publish_many_by_unnest": publish_many_by_unnest,
            "drain": drain,
        },
        packages=("psycopg", "redis", "hiredis", "pika"),
    )
