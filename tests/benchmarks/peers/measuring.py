"""The tasks of peers that run in a Django site."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks import ending, site
from tests.benchmarks.ending import Command, Fed
from tests.benchmarks.protocol import Answer, Task, added, measured, serve


@dataclass(frozen=True, kw_only=True)
class DjangoPeer:
    """The work of a peer, as functions and commands.

    Args:
        tables: emptied before each measurement.
        enqueue: writes one event in the current transaction.
        enqueue_many: writes many events at once, if the peer supports it.
        workers: the processes from the commit to the handler.
        relays: the processes from the table to a broker, if the peer has any.
        enqueue_for_relay: writes one event for the broker, if `enqueue` does not.
        pending: the SQL condition for unfinished rows of the first table; empty for all rows.
        clear_broker: removes the messages of earlier measurements from the broker.
    """

    packages: tuple[str, ...]
    tables: Sequence[str]
    enqueue: Callable[[], object]
    workers: Sequence[Command]
    enqueue_many: Callable[[int], object] | None = None
    relays: Sequence[Command] = ()
    enqueue_for_relay: Callable[[], object] | None = None
    pending: str = ""
    clear_broker: Callable[[], object] = lambda: None

    def serve(self) -> None:
        """Answer requests."""
        tasks: dict[str, Task] = {
            "publish": self.publish,
            "end_to_end": self.end_to_end,
            "latency": self.latency,
        }
        if self.enqueue_many is not None:
            tasks["publish_many"] = self.publish_many
        if self.relays:
            tasks["drain"] = self.drain
        serve(tasks, packages=self.packages)

    def publish(self, events: int) -> Answer:
        """Publish one event in a business transaction."""
        self.clear()
        business = site.Business()
        return added(business.bare, lambda count: business.with_each(count, self.enqueue), events=events)

    def publish_many(self, events: int) -> Answer:
        """Publish many events in one transaction."""
        from django.db import transaction

        def write() -> None:
            assert self.enqueue_many is not None
            with transaction.atomic():
                self.enqueue_many(events)

        self.clear()
        return measured(write, events)

    def drain(self, events: int) -> Answer:
        """Relay a backlog to the broker."""
        self.clear()
        enqueue = self.enqueue_for_relay or self.enqueue
        return ending.drained(
            *self.relays,
            feed=lambda count: self.feed(count, enqueue),
            events=events,
            is_drained=self.is_drained,
        )

    def end_to_end(self, events: int) -> Answer:
        """Commit a backlog for idle processes."""
        self.clear()
        return ending.end_to_end(
            *self.workers,
            feed=self.feed,
            events=events,
            settle=lambda: ending.wait_until(self.is_drained),
        )

    def latency(self, samples: int, rate: float = 0.0) -> Answer:
        """Commit one event at a time."""
        self.clear()
        return ending.latency(*self.workers, feed=self.feed, samples=samples, rate=rate)

    def feed(self, events: int, enqueue: Callable[[], object] | None = None) -> Fed:
        """Write events in one transaction; the time begins with its commit."""
        from django.db import transaction

        moments: list[float] = []
        with transaction.atomic():
            transaction.on_commit(lambda: moments.append(time.monotonic()))
            for _ in range(events):
                (enqueue or self.enqueue)()
        return Fed(moments[0])

    def clear(self) -> None:
        """Empty the tables, and the queues of a broker."""
        self.clear_broker()
        self._execute(f"TRUNCATE {', '.join((*self.tables, 'bench_order'))} CASCADE")

    def is_drained(self) -> bool:
        """Return whether the first table has no unfinished rows."""
        where = f" WHERE {self.pending}" if self.pending else ""
        return self._execute(f"SELECT NOT EXISTS (SELECT 1 FROM {self.tables[0]}{where})")

    def _execute(self, statement: str) -> bool:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement)
            return bool(cursor.fetchone()[0]) if cursor.description else True
