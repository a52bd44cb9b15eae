"""The messages that this process has fetched and not yet run, and their acknowledgements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import dramatiq.worker

# A message that takes less than this is short: a process may fetch many of them in advance.
SHORT_S = 0.010
# The weight of the latest message in the moving average of the time that messages take.
AVERAGE_WEIGHT = 0.1
# Dramatiq's prefetch, and the prefetch of short messages.
PREFETCH_PER_THREAD = 2
SHORT_PREFETCH = 64
# A process with room for less than a quarter of its prefetch waits this long for more room.
COALESCE_S = 0.002
# A process that may fetch more has work for about this time.
AHEAD_S = 0.1


class LocalQueue:
    """The fetched messages of one queue, by their ids in the broker. It outlives its consumers.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        threads: how many worker threads run the messages.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = 1
        # Worker threads take the lock itself. A condition takes it by code in Python: if Dramatiq interrupted
        # the thread in that code, the lock would stay taken.
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)
        # Set when a reply was lost: Redis may count messages as fetched that this process never got.
        self.may_have_lost_fetches = False
        self._clock = clock
        self._running: dict[str, tuple[float, int]] = {}
        # A dict keeps the order. An acknowledgement stays here until Redis has confirmed it.
        self._acks: dict[str, None] = {}
        self._average_s: float | None = None

    def __len__(self) -> int:
        return len(self._running)

    def start(self, ids: Iterable[str]) -> None:
        """Record that messages were fetched."""
        now = self._clock()
        with self._lock:
            for one in ids:
                self._running[one] = (now, len(self._running) + 1)

    def finish(self, broker_id: str, *, ack: bool) -> None:
        """Record that a message has run, and whether its acknowledgement has to be sent."""
        with self._lock:
            if ack:
                # First, so that an interrupt loses no acknowledgement.
                self._acks[broker_id] = None
            started, position = self._running.pop(broker_id, (None, 1))
            if started is not None:
                self._count(self._clock() - started, position)
            self.changed.notify_all()

    def forget(self, ids: Iterable[str]) -> None:
        """Remove messages that return to the queue without a run."""
        with self._lock:
            for one in ids:
                self._running.pop(one, None)
            self.changed.notify_all()

    def acks(self) -> list[str]:
        """Return the acknowledgements to send, in the order of the runs."""
        with self._lock:
            return list(self._acks)

    def confirm_acks(self, ids: Iterable[str]) -> None:
        """Remove acknowledgements that Redis has confirmed."""
        with self._lock:
            for one in ids:
                self._acks.pop(one, None)

    def lost(self, fetched: Iterable[str]) -> list[str]:
        """Return the ids that Redis counts as fetched by this process, and that the process does not have."""
        with self._lock:
            return [one for one in fetched if one not in self._running and one not in self._acks]

    def wait_for_room(self, prefetch: int, timeout_s: float, *, most: int = SHORT_PREFETCH) -> int:
        """Wait until messages may be fetched; return how many, 0 after a timeout without room.

        Args:
            prefetch: how many messages may be fetched and not have run; short messages raise it.
            most: how many short ones at most, if they are the work of `AHEAD_S`.
        """
        limit = prefetch
        if self.are_short and not dramatiq.worker.QUEUE_PREFETCH:
            ahead = int(AHEAD_S * self.threads / max(self._average_s or 0.0, 1e-6))
            limit = max(prefetch, SHORT_PREFETCH, min(most, ahead))
        with self.changed:
            if len(self) >= limit and not self.changed.wait(timeout_s):
                return 0
            if limit - len(self) <= limit // 4:
                self.changed.wait_for(lambda: limit - len(self) > limit // 4, COALESCE_S)
            return max(0, limit - len(self))

    @property
    def are_short(self) -> bool:
        """Whether messages have taken less than `SHORT_S` on average."""
        return self._average_s is not None and self._average_s < SHORT_S

    def _count(self, took_s: float, position: int) -> None:
        # A message also waits for those fetched before it, of which the threads run several at a time.
        run_s = took_s * self.threads / max(position, self.threads)
        average_s = run_s if self._average_s is None else self._average_s
        self._average_s = average_s + AVERAGE_WEIGHT * (run_s - average_s)
