"""The buffer of one process, and the thread that flushes it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from django.db import connections

from ..conf import get_settings
from ..lifecycle import delivery_failed
from ..models import Delivery, Tally
from ..outcomes import Outcome
from . import writing
from .buffer import Batch

logger = logging.getLogger(__name__)

FLUSH_SIZE = 500
FLUSH_INTERVAL_S = 0.1
# Nothing waits for the counts of monitored functions, and every web process has some.
COUNT_INTERVAL_S = 5.0
# What could not be written is tried again after the first of these times, then ever later up to the second:
# a relay that has a row locked commits soon, while an outage may last.
SHORTEST_RETRY_S = 0.02
RETRY_INTERVAL_S = 0.2
CLOSE_TIMEOUT_S = 30.0
# A process that ends and has only counts to lose waits no longer than this for its database.
EXIT_TIMEOUT_S = 2.0

_Status = Delivery.Status

_diverted: ContextVar[list[Outcome] | None] = ContextVar("outbox_diverted", default=None)


class Confirmations:
    """The buffer of one process, and the thread that flushes it by size, tick and shutdown.

    While `holds_counts` is set the counts of monitored functions start no thread, as tests need it.
    """

    def __init__(self) -> None:
        self.holds_counts = False
        self._reset()
        # A forked child has none of its parent's threads, and must not flush its parent's outcomes.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # Taken as it is where a time limit or a shutdown may interrupt a worker's thread: a condition takes
        # it by code in Python, and would keep it for ever if that is where the interrupt comes.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._flushing = threading.Lock()
        self._given_up = threading.Event()
        self._batches: dict[str, Batch] = {}
        self._counts: dict[str, Tally] = {}
        self._waiting = 0
        # Outcomes of the flush under way.
        self._in_hand = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, *outcomes: Outcome) -> None:
        """Buffer outcomes; the flushing thread starts with the first one."""
        diverted = _diverted.get()
        if diverted is not None:
            diverted += outcomes
            return
        if not outcomes:
            return
        settings = get_settings()
        urgent = False
        with self._lock:
            try:
                for outcome in outcomes:
                    batch = self._batches.get(outcome.database)
                    if batch is None:
                        batch = self._batch_of(outcome)
                        if batch is None:
                            continue
                    if settings.confirm and outcome.status:
                        batch.keep(outcome)
                    if outcome.lane:
                        urgent = True
                        if outcome.is_final:
                            batch.lanes.add((outcome.handler, outcome.lane))
                    if settings.stats and outcome.verdict:
                        batch.tally(outcome.handler).count(outcome.verdict, outcome.duration_s)
            finally:
                # Of an interrupted thread as well: what is kept by now is not to wait for the next outcome.
                if self._batches:
                    self._notice(len(outcomes), urgent=urgent)

    def count_dispatched(self, database: str, counts: dict[str, int]) -> None:
        """Count what a relay has handed to the broker, by handler."""
        if not get_settings().stats:
            return
        with self._lock:
            batch = self._batches.setdefault(database, Batch())
            for handler, count in counts.items():
                batch.tally(handler).dispatched += count
            self._notice()

    def count(self, name: str, verdict: str, duration_s: float) -> None:
        """Count one call of a monitored function, for which there is no delivery."""
        with self._lock:
            tally = self._counts.get(name)
            if tally is None:
                tally = self._counts[name] = Tally()
                if len(self._counts) == 1 and not self.holds_counts:
                    self._changed.notify_all()
            tally.count(verdict, duration_s)
            if self._thread is None and not self.holds_counts:
                self._start()

    def drop_counts(self) -> None:
        """Forget what monitored functions have counted since the last flush."""
        with self._lock:
            self._counts = {}

    @contextmanager
    def diverted(self) -> Generator[list[Outcome]]:
        """Collect the outcomes of this thread in a list, for a caller that confirms them itself."""
        outcomes: list[Outcome] = []
        token = _diverted.set(outcomes)
        try:
            yield outcomes
        finally:
            _diverted.reset(token)

    def flush(self) -> bool:
        """Write all that is buffered; return whether nothing is left.

        What cannot be written because the database is away, or a row is locked, stays buffered; so does what
        is not written yet when the thread is interrupted.
        """
        failures: list[Outcome] = []
        try:
            with self._flushing:
                return self._flush_all(failures)
        finally:
            # Outside of the lock, since a receiver may take its time, or flush itself.
            _tell(failures)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Flush and end the thread, trying for `timeout_s` seconds if the database is away.

        What other threads add meanwhile starts a thread anew.
        """
        with self._lock:
            thread, given_up = self._thread, self._given_up
            self._closing = True
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
            given_up.set()
        with self._lock:
            self._thread, self._closing, self._given_up = None, False, threading.Event()
            if self._batches and (thread is None or not thread.is_alive()):
                # Something came after the thread's last look.
                self._start()
            left = self._in_hand + sum(len(batch.outcomes) for batch in self._batches.values())
        if left:
            logger.error("%d outcomes are not confirmed yet; their deliveries may be sent again", left)

    def _batch_of(self, outcome: Outcome) -> Batch | None:
        """Begin the batch of an outcome's database, if there is such a database."""
        if outcome.database not in connections.settings:
            logger.error("delivery %d names an unknown database %r", outcome.delivery_id, outcome.database)
            return None
        batch = self._batches[outcome.database] = Batch()
        return batch

    def _notice(self, new: int = 1, *, urgent: bool = False) -> None:
        # A lane stands still until its first delivery is confirmed.
        waiting = self._waiting + (FLUSH_SIZE if urgent else new)
        self._start()
        if not self._waiting or waiting >= FLUSH_SIZE:
            self._changed.notify_all()
        # Last: an interrupt before it leaves the next one to notify.
        self._waiting = waiting

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            _close_at_exit(self)
            self._thread = threading.Thread(
                target=self._run, args=(self._given_up,), name="outbox-confirmations", daemon=True
            )
            self._thread.start()

    def _run(self, given_up: threading.Event) -> None:
        retry_s = SHORTEST_RETRY_S
        try:
            while self._wait_for_work() and not given_up.is_set():
                in_a_hurry = self._waiting > 0
                if not self.flush():
                    # Not shutdown but its giving up ends this wait: until then it is worth trying again.
                    given_up.wait(retry_s)
                    retry_s = min(2 * retry_s, RETRY_INTERVAL_S)
                    continue
                retry_s = SHORTEST_RETRY_S
                if not in_a_hurry:
                    # Until counts are flushed again a web process does better without another connection.
                    connections.close_all()
        finally:
            connections.close_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            # Somebody else may have flushed what it woke for. To end for that would leave to nobody what is
            # added in the last moments of the thread.
            while not self._closing:
                self._changed.wait_for(lambda: self._batches or self._counts or self._closing)
                self._changed.wait_for(lambda: self._batches or self._closing, COUNT_INTERVAL_S)
                self._changed.wait_for(lambda: self._waiting >= FLUSH_SIZE or self._closing, FLUSH_INTERVAL_S)
                if self._batches or self._counts:
                    return True
            return bool(self._batches or self._counts)

    def _flush_all(self, failures: list[Outcome]) -> bool:
        # A time limit or a shutdown may interrupt the thread, if it is a worker's, between any two calls. So
        # outcomes are taken over by assignments alone, and where they are put back if anything happens.
        batches: dict[str, Batch] = {}
        complete = True
        try:
            with self._lock:
                batches, self._batches, self._waiting = self._batches, {}, 0
                counts, self._counts = self._counts, {}
                self._in_hand = sum(len(batch.outcomes) for batch in batches.values())
            if counts:
                batches.setdefault(get_settings().databases[0], Batch()).put_back(Batch(tallies=counts))
            while batches:
                # Each is written, whether or not the one before it was.
                complete &= self._flush_next(batches, failures)
        finally:
            for database, batch in batches.items():
                self._put_back(database, batch)
            self._in_hand = 0
        return complete

    def _flush_next(self, batches: dict[str, Batch], failures: list[Outcome]) -> bool:
        """Write one batch in pieces; add the failures that were written, and return if nothing is left."""
        database, batch = next(iter(batches.items()))
        left, pieces = Batch(), batch.split(FLUSH_SIZE)
        try:
            del batches[database]
            while pieces:
                rest, failed = writing.attempt(database, pieces[0])
                failures += failed
                if rest is pieces[0]:
                    # The others would fare no better now.
                    break
                left.put_back(rest)
                del pieces[0]
        finally:
            for piece in pieces:
                left.put_back(piece)
            if left:
                self._put_back(database, left)
        return not left

    def _put_back(self, database: str, left: Batch) -> None:
        with self._lock:
            self._in_hand -= len(left.outcomes)
            self._batches.setdefault(database, Batch()).put_back(left)
            self._waiting += FLUSH_SIZE if left.lanes else 1
            # Whoever flushed, it is the thread that tries again.
            self._changed.notify_all()


@cache  # a forked child inherits both this memory and what is registered
def _close_at_exit(buffer: Confirmations) -> None:
    # A web process has no shutdown hook; what it counted last would be lost.
    atexit.register(buffer.close, EXIT_TIMEOUT_S)


confirmations = Confirmations()


def _tell(failures: Sequence[Outcome]) -> None:
    for outcome in failures:
        delivery_failed.send_robust(
            Confirmations,
            database=outcome.database,
            delivery_id=outcome.delivery_id,
            handler=outcome.handler,
            error=outcome.error,
        )
