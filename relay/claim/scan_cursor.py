"""The start of a scan for due rows: a remembered position, or the start of the index.

A scan reads past the index entries of finished rows until vacuum removes them. A scan cursor remembers where
the pending rows began, so that the next scan starts there. The position is a hint: a row can appear before
it, when a transaction commits late or another relay returns a row to pending. A full scan finds such rows.

The rule for full scans: while full scans take less than `CHEAP_S`, every scan is a full one. Otherwise the
pause after a full scan is 19 times its duration, so that full scans take 5 % of the time. When a process
notifies of a late commit, the pause is only as long as the full scan. No pause exceeds `MAX_PAUSE_S`.

An idle relay makes the full scans when it checks for due rows, so that claims are prompt. A claim makes a
full scan only when no check has made it for `GRACE_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

# Rows of a transaction that takes no longer from its publish to its commit are never before the position.
MARGIN = timedelta(seconds=1)

CHEAP_S = 0.005
PAUSE_FACTOR = 19
MAX_PAUSE_S = 10.0
GRACE_S = 2.0

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Clock = Callable[[], float]


class Position(NamedTuple):
    """A place in the order of deliveries: a due time in microseconds since 1970, and an id."""

    due_us: float
    id: int = 0

    @property
    def due_at(self) -> str:
        """The due time as text for the database."""
        return "-infinity" if self.due_us == -inf else (EPOCH + self.due_us * MICROSECOND).isoformat()


START = Position(-inf)


class ScanCursor:
    """The position from which one relay scans one kind of pending rows.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        position: where the next scan starts unless it is a full one.
        was_full: whether the last scan was a full one.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.position = START
        self.was_full = True
        self._clock = clock
        self._requested = False
        self._full_at = -inf
        self._full_at_if_requested = -inf

    def start_position(self, *, grace_s: float = 0.0) -> Position:
        """Return where a scan is to start now.

        Args:
            grace_s: how long a full scan may be overdue before this scan has to be a full one.
        """
        now = self._clock()
        due = now >= self._full_at + grace_s or (self._requested and now >= self._full_at_if_requested)
        return START if due else self.position

    def end_scan(self, start: Position, *, took_s: float) -> None:
        """Remember whether the scan was a full one, and then when the next full scan is due."""
        self.was_full = start == START
        if not self.was_full:
            return
        now = self._clock()
        self._requested = False
        if took_s < CHEAP_S:
            self._full_at = -inf
        else:
            self._full_at = now + min(PAUSE_FACTOR * took_s, MAX_PAUSE_S)
        self._full_at_if_requested = now + min(took_s, MAX_PAUSE_S)

    def move(self, to: Position | None, *, now_us: int, ahead: timedelta = timedelta()) -> None:
        """Remember where the pending rows begin, but no position within `MARGIN` of the present.

        Args:
            to: the position of the first pending row; None if the scan found none.
            now_us: the database's time in microseconds since 1970.
            ahead: how long before they are due the scan finds rows.
        """
        latest = Position(now_us + (ahead - MARGIN) // MICROSECOND)
        self.position = latest if to is None else min(to, latest)

    def reset(self) -> None:
        """Make the next scan a full one."""
        self._full_at = -inf

    def request_full_scan(self) -> None:
        """Make a full scan due after the short pause, since a transaction has committed late."""
        self._requested = True

    def requested_in_s(self) -> float:
        """Return in how many seconds a requested full scan is due; infinity if none is requested."""
        if not self._requested:
            return inf
        return max(0.0, min(self._full_at, self._full_at_if_requested) - self._clock())


class ScanCursors:
    """The scan cursors of one relay.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        keyless: for deliveries without an ordering key; for all deliveries if no handler is ordered.
        ordered: for deliveries with an ordering key.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.keyless = ScanCursor(clock=clock)
        self.ordered = ScanCursor(clock=clock)
        self._batches: dict[str, ScanCursor] = {}
        self._clock = clock

    def of_batch(self, handler: str) -> ScanCursor:
        """Return the scan cursor of a batch handler."""
        if handler not in self._batches:
            self._batches[handler] = ScanCursor(clock=self._clock)
        return self._batches[handler]

    @contextmanager
    def scan(self, *cursors: ScanCursor, grace_s: float = 0.0) -> Generator[Position]:
        """Time one scan for the rows of several cursors; yield the first of the positions where they start.

        Args:
            grace_s: how long a full scan may be overdue before this scan has to be a full one.
        """
        start = min(cursor.start_position(grace_s=grace_s) for cursor in cursors)
        began = self._clock()
        yield start
        took_s = self._clock() - began
        for cursor in cursors:
            cursor.end_scan(start, took_s=took_s)

    @property
    def were_full(self) -> bool:
        """Whether the last scan of each kind was a full one."""
        return all(cursor.was_full for cursor in self._all())

    def reset(self) -> None:
        """Make the next scan of each kind a full one."""
        for cursor in self._all():
            cursor.reset()

    def request_full_scans(self) -> None:
        """Make full scans due after the short pause, since a transaction has committed late."""
        for cursor in self._all():
            cursor.request_full_scan()

    def requested_in_s(self) -> float:
        """Return in how many seconds a requested full scan is due; infinity if none is requested."""
        return min(self.keyless.requested_in_s(), self.ordered.requested_in_s())

    def _all(self) -> Iterable[ScanCursor]:
        return (self.keyless, self.ordered, *self._batches.values())
