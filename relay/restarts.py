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
        self._early_deaths = 0
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._started_at = self._due_at = clock()

    def in_a_row(self, *, running: bool) -> int:
        """Return how many have died without having been well in between.

        Args:
            running: whether there is a process now, which is well by itself once it has lived long enough.
        """
        return 0 if running and self._lived_well() else self._early_deaths

    def due_in_s(self) -> float:
        """Return in how many seconds the next start is due; zero or less for now."""
        return self._due_at - self._clock()

    def note_start(self) -> None:
        """Remember when the process started."""
        self._started_at = self._clock()

    def note_death(self) -> float:
        """Count a death and return the wait in seconds that follows it."""
        if self._lived_well():
            self._backoff.reset()
            self._early_deaths = 0
        self._early_deaths += 1
        wait_s = self._backoff.next_s()
        self._due_at = self._clock() + wait_s
        return wait_s

    def _lived_well(self) -> bool:
        return self._clock() - self._started_at >= WELL_AFTER_S
