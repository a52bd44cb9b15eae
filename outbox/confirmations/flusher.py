"""The flusher of one database: a buffer of outcomes and counts, which a thread flushes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from outbox.models import Tally

from .buffer import Buffer
from .flush_parts import drop_unwanted_tallies, write_next
from .in_flush import InFlush
from .outcome import Outcome
from .outcome_signals import send_outcomes
from .policy import FlushPolicy
from .room import Room
from .thread import FlushThread, Work

logger = logging.getLogger(__name__)


class Flusher:
    """Buffers the outcomes of one database; a thread flushes them by size, by time and at shutdown.

    Args:
        database: the alias of the database.
        policy: the sizes and times.
        sender: the sender of the telemetry signals.
        on_start: called before a thread starts; None if only `flush` flushes.
    """

    def __init__(
        self, database: str, *, policy: FlushPolicy, sender: type, on_start: Callable[[], object] | None
    ) -> None:
        self.database = database
        self.policy = policy
        self._sender = sender
        self._on_start = on_start
        # Worker threads take the lock itself, as a time limit or a shutdown may interrupt them at any moment.
        # A condition acquires its lock in Python code, where an interrupt could leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._flush_lock = threading.Lock()
        self._stop_retrying = threading.Event()
        self._buffers: dict[str, Buffer] = {}
        self._counts: dict[str, Tally] = {}
        # Outcomes since the last flush; an urgent one counts as many as start a flush.
        self._backlog = 0
        self._in_flush = InFlush()
        self._room = Room(database, lambda: self.is_full)
        self._closing = False
        self._thread: FlushThread | None = None

    @property
    def thread(self) -> threading.Thread | None:
        """The flushing thread, None before the first outcome and after `close`."""
        return self._thread

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Buffer outcomes; the first one starts the flushing thread."""
        urgent = False
        with self._lock:
            try:
                buffer = self._buffer()
                for outcome in outcomes:
                    if outcome.state:
                        buffer.add(outcome)
                    if outcome.ordering_key:
                        urgent = True
                        if outcome.is_final:
                            buffer.ordering_keys.add((outcome.handler, outcome.ordering_key))
                    if outcome.result:
                        buffer.tally(outcome.handler).count(outcome.result, outcome.duration_s)
            finally:
                # After an interrupt too: the outcomes so far must not wait for the next outcome.
                if self._buffers:
                    self._notify(len(outcomes), urgent=urgent)

    @property
    def is_full(self) -> bool:
        """Return whether worker threads wait until outcomes are written."""
        with self._lock:
            number, text_bytes = self._in_flush.size_with(self._buffers.get(self.database))
        return number >= self.policy.max_buffered or text_bytes >= self.policy.max_text_bytes

    def wait_for_room(self, waits: Callable[[], bool]) -> None:
        """Wait until the buffer is no longer full, or until `waits` returns False."""
        self._room.wait(lambda: waits() and self._keep_flushing(), self.policy.room_interval_s)

    def _keep_flushing(self) -> bool:
        # A thread that ends after `close` may leave outcomes.
        with self._lock:
            self._start()
        return True

    def count_dispatched(self, counts: dict[str, int]) -> None:
        """Count the deliveries that a relay has dispatched, by handler."""
        with self._lock:
            for handler, count in counts.items():
                self._tally(handler, deferred=False).dispatched += count

    def count(self, name: str, result: str, duration_s: float, *, deferred: bool) -> None:
        """Count one call of a monitored function, for which there is no delivery.

        Args:
            deferred: start no thread.
        """
        with self._lock:
            self._tally(name, deferred=deferred).count(result, duration_s)

    def drop_counts(self) -> None:
        """Drop the counts without an outcome since the last flush."""
        with self._lock:
            self._counts = {}

    def unwritten(self) -> dict[int, str]:
        """Return the handlers of the deliveries whose outcomes are buffered, or in a flush that goes on."""
        with self._lock:
            buffers = [*self._buffers.values(), *self._in_flush.buffers]
            return {ref.id: one.handler for buffer in buffers for ref, one in buffer.outcomes.items()}

    def flush(self) -> bool:
        """Write all that is buffered; return whether nothing is left.

        Outcomes stay buffered if the database is away, a row is locked, or the thread is interrupted.
        """
        reported: list[Outcome] = []
        try:
            with self._flush_lock:
                return self._flush_all(reported)
        finally:
            # After the lock is released, since a receiver may be slow, or flush.
            send_outcomes(self._sender, reported)

    def begin_close(self) -> None:
        """Let the thread end after its last flush, without waiting for it."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Flush, and end the thread; outcomes that other threads add meanwhile start a new thread.

        Args:
            timeout_s: how long to retry if the database is away.
        """
        self.begin_close()
        thread, stop_retrying = self._thread, self._stop_retrying
        if thread is not None:
            thread.join(timeout_s)
            stop_retrying.set()
        with self._lock:
            self._thread, self._closing, self._stop_retrying = None, False, threading.Event()
            if self._buffers and (thread is None or not thread.is_alive()):
                # An outcome was added after the thread's last check.
                self._start()
            left, _text_bytes = self._in_flush.size_with(self._buffers.get(self.database))
        if left:
            text = "%d outcomes are not confirmed yet in database %r; their deliveries may be redelivered"
            logger.error(text, left, self.database, extra={"database": self.database})

    def _buffer(self) -> Buffer:
        if self.database not in self._buffers:
            self._buffers[self.database] = Buffer()
        return self._buffers[self.database]

    def _tally(self, name: str, *, deferred: bool) -> Tally:
        tally = self._counts.get(name)
        if tally is None:
            tally = self._counts[name] = Tally()
            if len(self._counts) == 1 and not deferred:
                self._changed.notify_all()
        if self._thread is None and not deferred:
            self._start()
        return tally

    def _notify(self, new: int = 1, *, urgent: bool = False) -> None:
        # An ordering key is blocked until its first delivery is confirmed.
        flush_size = self.policy.flush_size
        backlog = self._backlog + (flush_size if urgent else new)
        self._start()
        if not self._backlog or backlog >= flush_size:
            self._changed.notify_all()
        # The last step: after an interrupt, the next outcome notifies the thread.
        self._backlog = backlog

    def _start(self) -> None:
        if self._on_start is not None and (self._thread is None or not self._thread.is_alive()):
            self._on_start()
            self._thread = FlushThread(
                wait_for_work=self._wait_for_work,
                flush=self.flush,
                policy=self.policy,
                stop_retrying=self._stop_retrying,
            )
            self._thread.start()

    def _wait_for_work(self) -> Work:
        with self._changed:
            # The thread stays when another thread has flushed its work, as outcomes that are added while it
            # ends would have no thread.
            while not self._closing:
                self._changed.wait_for(lambda: self._buffers or self._counts or self._closing)
                self._changed.wait_for(lambda: self._buffers or self._closing, self.policy.count_interval_s)
                self._changed.wait_for(
                    lambda: self._backlog >= self.policy.flush_size or self._closing,
                    self.policy.flush_interval_s,
                )
                if self._buffers or self._counts:
                    break
            if not self._buffers and not self._counts:
                return Work.NONE
            return Work.OUTCOMES if self._backlog else Work.ONLY_COUNTS

    def _flush_all(self, reported: list[Outcome]) -> bool:
        # A time limit or a shutdown may interrupt a worker's thread between any two calls. The flush takes
        # outcomes by assignments alone, inside the block that puts them back.
        buffers: dict[str, Buffer] = {}
        complete = True
        try:
            with self._lock:
                buffers, self._buffers, self._backlog = self._buffers, {}, 0
                counts, self._counts = self._counts, {}
                self._in_flush.begin(buffers.values())
            drop_unwanted_tallies(buffers)
            if counts:
                buffers.setdefault(self.database, Buffer()).merge_older(Buffer(tallies=counts))
            while buffers:
                # Each buffer is written, even if the buffer before it was not.
                complete &= write_next(
                    buffers,
                    part_size=self.policy.flush_size,
                    reported=reported,
                    put_back=self._put_back,
                )
        finally:
            for database, buffer in buffers.items():
                self._put_back(database, buffer)
            self._in_flush.end()
            self._room.check()
        return complete

    def _put_back(self, database: str, left: Buffer) -> None:
        with self._lock:
            self._in_flush.put_back(left)
            self._buffer().merge_older(left)
            self._backlog += self.policy.flush_size if left.ordering_keys else 1
            # The thread retries, even if another thread has flushed.
            self._changed.notify_all()
