"""Draining the table into Redis, beside the same written raw with psycopg and redis-py."""

from __future__ import annotations

import uuid
from typing import Any

import dramatiq
import redis
from django.conf import settings
from django.db import connection, transaction

import outbox
from outbox.models import Delivery, Event
from tests.benchmarks.measure import interleaved, print_table
from tests.helpers import relay_all
from tests.testapp.handlers import QUEUE

BATCH = 500
PAYLOAD = {"order_id": 7, "note": "x" * 400}


def main(*, events: int, rounds: int) -> None:
    """Print the figures."""
    floor = Floor()
    figures = interleaved(
        {"raw claim + variadic write": floor.drain, "the relay": relay_all},
        units=events,
        rounds=rounds,
        before=lambda: fill(events),
    )
    print_table(
        f"Draining {events} events into Redis (per event)", figures, floor="raw claim + variadic write"
    )
    ratio = figures["raw claim + variadic write"].wall_us / figures["the relay"].wall_us
    print(f"\nThe relay drains at {ratio:.2f} of the floor's rate.")


def fill(events: int) -> None:
    """Publish afresh, on an empty table and an empty queue."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE outbox_event, outbox_delivery, outbox_handlerstats")
    dramatiq.get_broker().flush_all()
    for start in range(0, events, 5000):
        with transaction.atomic():
            outbox.publish_many(
                {"topic": "flaky.bench", "payload": PAYLOAD} for _ in range(min(5000, events - start))
            )
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {Event._meta.db_table}, {Delivery._meta.db_table}")


class Floor:
    """What the database and the broker allow: three statements and one variadic write a batch, no more."""

    def __init__(self) -> None:
        self.client = redis.Redis.from_url(settings.DRAMATIQ_BROKER["OPTIONS"]["url"])

    def drain(self) -> None:
        """Send everything."""
        while self.batch():
            continue

    def batch(self) -> bool:
        """Send one batch; return whether there was one."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT d.id, e.payload::text FROM outbox_delivery d JOIN outbox_event e ON e.id = d.event_id"
                " WHERE d.status = 'pending' AND d.held = '' ORDER BY d.available_at, d.id LIMIT %s"
                " FOR UPDATE OF d SKIP LOCKED",
                [BATCH],
            )
            rows = cursor.fetchall()
            if not rows:
                return False
            fields: list[Any] = []
            for pk, payload in rows:
                fields += (str(uuid.uuid4()), f'{{"queue_name":"q","delivery":{pk},"args":[{payload}]}}')
            key = f"{settings.DRAMATIQ_BROKER['OPTIONS']['namespace']}:{QUEUE}"
            with self.client.pipeline() as pipeline:
                pipeline.execute_command("HSET", f"{key}.msgs", *fields)
                pipeline.execute_command("RPUSH", key, *fields[::2])
                pipeline.execute()
            cursor.execute(
                "UPDATE outbox_delivery SET status = 'dispatched', dispatched_at = now() WHERE id = ANY(%s)",
                [[pk for pk, _payload in rows]],
            )
        return True
