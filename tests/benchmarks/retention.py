"""The relay's throughput on an empty table, on a full one, and while a transaction is open all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import dramatiq
import psycopg
from django.db import connection, transaction

import outbox
from outbox.lifecycle import batch_dispatched
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.testapp.handlers import QUEUE

HANDLER = "benchmarks.flat"
BATCH = 500
CHUNK = 100_000
PAYLOAD = {"order_id": 7, "note": "x" * 400}
DEADLINE_S = 300

# Of the last hour, so that nothing of it is pruned.
_RETAINED = """
WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers)
    SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 3600000), 12, '0')
            || '70008' || lpad(to_hex(n), 15, '0'))::uuid, 'bench.flat', '',
           '{"order_id": 7, "note": "such as one has"}', '{}'
    FROM generate_series(%s::bigint, %s::bigint - 1) AS n
    RETURNING id
)
INSERT INTO outbox_delivery
    (event_id, handler, queue, status, attempts, available_at, dispatched_at, finished_at)
SELECT id, %s, 'flat', 'succeeded', 1,
       now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour'
FROM new_event
"""

# A second pair of tables, so that full and empty ones are measured in turn: renaming costs nothing.
_COPIES = "".join(
    f"CREATE TABLE spare_{name} (LIKE outbox_{name} INCLUDING ALL); TRUNCATE outbox_{name};"
    for name in ("event", "delivery")
)
_SWAP = "".join(
    f"ALTER TABLE outbox_{name} RENAME TO swap_{name}; ALTER TABLE spare_{name} RENAME TO outbox_{name};"
    f"ALTER TABLE swap_{name} RENAME TO spare_{name};"
    for name in ("event", "delivery")
)


@dataclass(frozen=True)
class Figure:
    """What one round took for each event, in µs: wall time, and CPU time of the relay's process."""

    wall_us: float
    cpu_us: float


def main(rows: int, *, events: int, rounds: int) -> None:
    """Print what retained rows, and an open transaction, make of the relay's throughput."""
    outbox.handler("bench.*", name=HANDLER, queue_name=QUEUE)(print)
    execute(_COPIES)
    retain(rows)
    of = f"Relaying {events:,} events into Redis, per event"
    with relaying() as relay:
        found = compare(relay, events, rounds)
        print_table({"empty tables": found[1], f"{rows:,} rows retained": found[0]}, of=of)
        # Now what dies piles up in the tables that were empty, and the others are emptied for each round.
        execute(_SWAP)
        with open_transaction():
            found = compare(relay, events, 2 * rounds)
        print_table({"empty tables": found[1], "dead rows of all rounds": found[0]}, of=f"{of}, pinned")
    execute("DROP TABLE spare_event, spare_delivery")


def compare(relay: Running, events: int, rounds: int) -> tuple[list[Figure], list[Figure]]:
    """Measure on the tables as they are, and in turn, so that both see the same noise, on empty ones."""
    figures: tuple[list[Figure], list[Figure]] = ([], [])
    for _round in range(rounds + 1):
        execute("TRUNCATE spare_event, spare_delivery")
        for found in figures:
            found.append(relay.dispatch(events))
            finish()
            execute(_SWAP)
    return figures


def retain(rows: int) -> None:
    """Write rows that are done with, and let the database settle."""
    for first in range(0, rows, CHUNK):
        last = min(first + CHUNK, rows)
        execute(_RETAINED, [first, last, HANDLER])
    for table in ("outbox_event", "outbox_delivery", "spare_event", "spare_delivery"):
        execute(f"VACUUM ANALYZE {table}")


def execute(sql: str, parameters: Sequence[Any] | None = None) -> None:
    """Run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def finish() -> None:
    """Confirm what was dispatched, as workers would have done meanwhile, and empty the queue."""
    execute(
        "UPDATE outbox_delivery SET status = 'succeeded', finished_at = now() WHERE status = 'dispatched'"
    )
    dramatiq.get_broker().flush_all()


class Running:
    """A relay that runs in a thread of its own, and what it has dispatched."""

    def __init__(self) -> None:
        self._dispatched = 0
        self._changed = threading.Condition()

    def dispatch(self, events: int) -> Figure:
        """Commit events, and measure until all are dispatched."""
        goal = self._dispatched + events
        with transaction.atomic():
            outbox.publish_many({"topic": "bench.flat", "payload": PAYLOAD} for _ in range(events))
        wall, cpu = time.perf_counter(), time.process_time()
        with self._changed:
            if not self._changed.wait_for(lambda: self._dispatched >= goal, DEADLINE_S):
                raise TimeoutError(f"{goal - self._dispatched} events are not dispatched")
        wall_us = (time.perf_counter() - wall) / events * 1e6
        return Figure(wall_us, (time.process_time() - cpu) / events * 1e6)

    def count(self, sender: Any, counts: Mapping[str, int], **_more: Any) -> None:
        """Receive the signal of a batch."""
        with self._changed:
            self._dispatched += sum(counts.values())
            self._changed.notify_all()


@contextmanager
def relaying() -> Iterator[Running]:
    """Run a relay for the length of a block."""
    running = Running()
    batch_dispatched.connect(running.count)
    with Stop() as stop:
        relay = Relay(RelayOptions(database="default", batch_size=BATCH), stop=stop)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            yield running
        finally:
            stop.request()
            thread.join()
            batch_dispatched.disconnect(running.count)


@contextmanager
def open_transaction() -> Iterator[None]:
    """Hold a snapshot, so that nothing that dies meanwhile may go."""
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Not from a table, which could not be emptied then.
        other.execute("SELECT 1")
        yield


def print_table(figures: Mapping[str, Sequence[Figure]], *, of: str) -> None:
    """Print medians without the first round, which warms up, and their throughput beside the first row's."""
    print(f"\n{of}\n\n| | wall µs | CPU µs | events/s : empty | CPU : empty |")
    print("| --- | --- | --- | --- | --- |")
    base: Figure | None = None
    for name, found in figures.items():
        one = Figure(median(f.wall_us for f in found[1:]), median(f.cpu_us for f in found[1:]))
        base = base or one
        ratios = f"{base.wall_us / one.wall_us:.2f} | {one.cpu_us / base.cpu_us:.2f}"
        print(f"| {name} | {one.wall_us:.1f} | {one.cpu_us:.1f} | {ratios} |")
