"""This package with a permanent relay: beside retained rows, and while a transaction is open."""

from __future__ import annotations

from . import outbox  # sets Django up, which the models need

# isort: split
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
from django.db import ProgrammingError, connection

from outbox.observability.telemetry import batch_dispatched
from relay.loop import Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.benchmarks import site
from tests.benchmarks.protocol import Answer, measured, serve

from .dramatiq_site import QUEUE

CHUNK = 100_000
DISPATCH_TIMEOUT_S = 240.0

# Events of the last hour, so that none of them is pruned.
RETAINED = """
WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers)
    SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 3600000), 12, '0')
            || '70008' || lpad(to_hex(n), 15, '0'))::uuid, 'bench.single', '',
           '{"order_id": 7, "note": "a typical note"}', '{}'
    FROM generate_series(%s::bigint, %s::bigint - 1) AS n
    RETURNING id
)
INSERT INTO outbox_delivery
    (event_id, handler, queue, state, attempts, available_at, dispatched_at, finished_at)
SELECT id, 'bench_single', %s, 'succeeded', 1,
       now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour'
FROM new_event
"""


class Running:
    """A relay in a thread of its own, and the number of deliveries that it has dispatched."""

    def __init__(self) -> None:
        self._dispatched = 0
        self._changed = threading.Condition()

    def count(self, sender: Any, counts: Mapping[str, int], **_more: Any) -> None:
        """Receive the signal `batch_dispatched`."""
        with self._changed:
            self._dispatched += sum(counts.values())
            self._changed.notify_all()

    def relay(self, events: int) -> Answer:
        """Commit events, and measure until all are dispatched."""
        goal = self._dispatched + events
        outbox.write(events)
        answer = measured(lambda: self._wait(goal), events)
        outbox.settle()
        return answer

    def _wait(self, goal: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._dispatched >= goal, DISPATCH_TIMEOUT_S):
                raise TimeoutError(f"{goal - self._dispatched} events are not dispatched")


class Tasks:
    """The tasks with a running relay."""

    def __init__(self, running: Running, stack: ExitStack) -> None:
        self._running = running
        self._stack = stack
        self._pin: psycopg.Connection[Any] | None = None

    def retain(self, rows: int) -> Answer:
        """Write finished rows, and vacuum the tables."""
        for first in range(0, rows, CHUNK):
            execute(RETAINED, first, min(first + CHUNK, rows), QUEUE)
        for table in ("outbox_event", "outbox_delivery"):
            execute(f"VACUUM ANALYZE {table}")
        # The role may lack the permission.
        with suppress(ProgrammingError):
            execute("CHECKPOINT")
        return {}

    def pin(self) -> Answer:
        """Hold a snapshot from now on, so that no dead row can be removed."""
        self._pin = self._stack.enter_context(psycopg.connect(**site.connection_options()))
        self._pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Without a table, which could not be truncated then.
        self._pin.execute("SELECT 1")
        return {}

    def relay_on_empty(self, events: int) -> Answer:
        """Relay on emptied tables."""
        outbox.clear()
        return self._running.relay(events)

    def relay_on_kept(self, events: int) -> Answer:
        """Relay on the tables with their rows."""
        answer = self._running.relay(events)
        if self._pin is not None:
            # Fails if the transaction has been ended.
            self._pin.execute("SELECT 1")
        return answer


@contextmanager
def relaying() -> Iterator[Running]:
    """Run a relay while the block runs."""
    running = Running()
    batch_dispatched.connect(running.count)
    with Stop() as stop:
        relay = Relay(RelayOptions(database="default"), stop=stop)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            yield running
        finally:
            stop.request()
            thread.join()
            batch_dispatched.disconnect(running.count)


def execute(sql: str, *parameters: Any) -> None:
    """Run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


if __name__ == "__main__":
    site.migrate()
    with relaying() as its, ExitStack() as until_the_end:
        tasks = Tasks(its, until_the_end)
        serve(
            {
                "retain": tasks.retain,
                "pin": tasks.pin,
                "relay_on_empty": tasks.relay_on_empty,
                "relay_on_kept": tasks.relay_on_kept,
            },
            packages=outbox.PACKAGES,
        )
