"""Where the pending rows begin: a look starts there instead of walking past dead index entries again.

A hint and nothing more. A row may turn up before it: its transaction was long, or another relay gave it back.
So every now and then a look starts from the very beginning, as often as its cost allows.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

# A transaction may take so long from its publish to its commit, and its rows are still not before the front.
MARGIN = timedelta(seconds=1)

# Looks from the very beginning may take this share of the time, beside the first few milliseconds of each:
# while nothing keeps dead entries alive no look takes longer, and all of them start from the beginning.
FULL_SHARE = 0.05
FREE_S = 0.005

# While rows that are late are told of, they may take this share.
LATE_SHARE = 0.5

# Then one comes whatever the last one took: that may have been a lock or a stall, and some rows are late.
LONGEST_S = 10.0

# An idle relay looks ahead, and those looks from the very beginning serve its claims too: these make one of
# their own only when none has come for so long. What dead entries cost then falls on nobody's event.
GRACE_S = 2.0

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Position(NamedTuple):
    """A place in the order of deliveries: when they are due, in microseconds since 1970, and their ids."""

    due_us: int | None
    id: int = 0

    @property
    def due_at(self) -> str:
        """The time as the database reads it."""
        return "-infinity" if self.due_us is None else (EPOCH + self.due_us * MICROSECOND).isoformat()


BEGINNING = Position(None)


class Front:
    """Where one kind of pending rows begins, as far as one relay has seen.

    Attributes:
        position: where it is.
        was_full: whether the last look started from the very beginning.
    """

    def __init__(self) -> None:
        self.position = BEGINNING
        self.was_full = True
        self._is_hastened = False
        self._full_at = 0.0
        self._full_at_soonest = 0.0

    @contextmanager
    def look(self) -> Generator[Position]:
        """Yield where a look is to start; the longer a full one takes, the later the next, within bounds."""
        started = time.monotonic()
        start = self.position if started < self._full_at else BEGINNING
        self.was_full = start == BEGINNING
        yield start
        ended = time.monotonic()
        if self.was_full:
            self._is_hastened = False
            self._full_at = ended + min(max(0.0, ended - started - FREE_S) / FULL_SHARE, LONGEST_S)
            self._full_at_soonest = ended + (ended - started) * (1 / LATE_SHARE - 1)

    def move(self, to: Position | None, *, now_us: int, ahead: timedelta = timedelta()) -> None:
        """Remember where a look ended, or that it saw all there was; but nothing too close to the present.

        Args:
            ahead: how long before they are due rows are looked at.
        """
        latest = Position(now_us + (ahead - MARGIN) // MICROSECOND)
        self.position = latest if to is None else min(to, latest)

    def follow(self, other: Front) -> None:
        """Take what the last look of another front, a full one, has seen for one of this front's."""
        self.position = other.position
        now = time.monotonic()
        # One that costs next to nothing is made each time.
        grace_s = GRACE_S if other._full_at > now else 0.0
        self._full_at = min(other._full_at + grace_s, now + LONGEST_S)
        self._full_at_soonest = other._full_at_soonest
        self._is_hastened = False

    def forget(self) -> None:
        """Start the next look from the very beginning."""
        self._full_at = 0.0

    def hasten(self) -> None:
        """Start a look from the very beginning as soon as may be."""
        self._full_at = min(self._full_at, self._full_at_soonest)
        self._is_hastened = True

    def hastened_in_s(self) -> float:
        """Return in how many seconds the look is to come that was hastened; infinity if none was."""
        return max(0.0, self._full_at - time.monotonic()) if self._is_hastened else inf


@dataclass
class Fronts:
    """One relay's fronts: of all that is due by itself, of its two kinds, and of batched handlers."""

    due: Front = field(default_factory=Front)
    ordinary: Front = field(default_factory=Front)
    lanes: Front = field(default_factory=Front)
    batches: dict[str, Front] = field(default_factory=dict)

    def of_batch(self, handler: str) -> Front:
        """Return the front of a batched handler."""
        return self.batches.setdefault(handler, Front())

    @property
    def were_full(self) -> bool:
        """Whether nothing can have been missed that was there at the last looks."""
        return all(front.was_full for front in self._all())

    def forget(self) -> None:
        """Start the next looks from the very beginning."""
        for front in self._all():
            front.forget()

    def hasten(self) -> None:
        """Start looks from the very beginning as soon as may be."""
        for front in self._all():
            front.hasten()

    def hastened_in_s(self) -> float:
        """Return in how many seconds it is time to ask again what is due, for rows that are late."""
        return self.due.hastened_in_s()

    def _all(self) -> Iterable[Front]:
        return (self.due, self.ordinary, self.lanes, *self.batches.values())


@contextmanager
def looks(fronts: Iterable[Front]) -> Generator[list[Position]]:
    """Time one look at several kinds; yield where each is to start."""
    with ExitStack() as stack:
        yield [stack.enter_context(front.look()) for front in fronts]
