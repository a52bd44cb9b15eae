"""What publishing adds to a business transaction, beside one raw INSERT."""

from __future__ import annotations

import json

from django.db import connection, transaction

import outbox
from outbox.uuid7 import uuid7
from tests.benchmarks.measure import interleaved, print_table
from tests.testapp.models import Order

TRANSACTIONS = 500
PAYLOAD = {"order_id": 7, "total": "12.50", "lines": [{"sku": f"sku-{n}", "quantity": n} for n in range(5)]}


def main(*, rounds: int) -> None:
    """Print the figures."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS bench_floor (id uuid PRIMARY KEY, topic text, payload jsonb,"
            " created_at timestamptz DEFAULT now())"
        )
    figures = interleaved(
        {"business row alone": bare, "with one raw INSERT": raw, "with publish()": published},
        units=TRANSACTIONS,
        rounds=rounds,
        before=lambda: None,
    )
    print_table("A business transaction of one row (per transaction)", figures, floor="business row alone")
    base = figures["business row alone"].cpu_us
    added = (figures["with publish()"].cpu_us - base) / (figures["with one raw INSERT"].cpu_us - base)
    print(f"\npublish() adds {added:.2f} times the CPU time of one raw INSERT.")


def bare() -> None:
    """Commit a business row at a time."""
    for _ in range(TRANSACTIONS):
        with transaction.atomic():
            Order.objects.create()


def raw() -> None:
    """Commit a business row and a row of an outbox written by hand."""
    for _ in range(TRANSACTIONS):
        with transaction.atomic():
            Order.objects.create()
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO bench_floor (id, topic, payload) VALUES (%s, %s, %s::jsonb)",
                    [uuid7(), "flaky.bench", json.dumps(PAYLOAD)],
                )


def published() -> None:
    """Commit a business row and an event with one delivery."""
    for _ in range(TRANSACTIONS):
        with transaction.atomic():
            Order.objects.create()
            outbox.publish("flaky.bench", PAYLOAD)
