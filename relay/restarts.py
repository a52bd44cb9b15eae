"""When a relay process that has died may start again."""

from __future__ import annotations

import time
from collections.abc import Callable

from .backoff import Backoff

# One that lived this long was well: it got past whatever fails at the start, however slowly a project starts.
WELL_AFTER_S = 60.0


class Restarts:
    """The starts and deaths of one place among the processes.

    Args:
        clock: gives seconds that only ever grow.
    """

    def __init__(
        self, *, backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.in_a_row = 0
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._started_at = self._due_at = clock()

    def due_in_s(self) -> float:
        """Return in how many seconds the next start is due; zero or less for now."""
        return self._due_at - self._clock()

    def note_start(self) -> None:
        """Remember when the process started."""
        self._started_at = self._clock()

    def note_death(self) -> float:
        """Count a death and return the wait in seconds that follows it."""
        now = self._clock()
        if now - self._started_at >= WELL_AFTER_S:
            self._backoff.reset()
            self.in_a_row = 0
        self.in_a_row += 1
        wait_s = self._backoff.next_s()
        self._due_at = now + wait_s
        return wait_s
