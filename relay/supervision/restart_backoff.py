"""The time of the next start of a relay process that has died."""

from __future__ import annotations

import time
from collections.abc import Callable

from relay.backoff import Backoff

# A process that ran this long has passed all errors of a start, however slowly a project starts.
STABLE_AFTER_S = 60.0


class RestartBackoff:
    """The starts and deaths of one child of the supervisor.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(
        self, *, backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._early_deaths = 0
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._started_at = self._due_at = clock()

    def deaths_in_a_row(self, *, running: bool) -> int:
        """Return the number of processes that have died since the last stable one.

        Args:
            running: whether a process is running, which ends the row as soon as it is stable.
        """
        return 0 if running and self._is_stable() else self._early_deaths

    def due_in_s(self) -> float:
        """Return in how many seconds the next start is due; at most 0.0 for now."""
        return self._due_at - self._clock()

    def note_start(self) -> None:
        """Remember the start of a process."""
        self._started_at = self._clock()

    def note_death(self) -> float:
        """Count a death and return the wait in seconds that follows it."""
        if self._is_stable():
            self.reset()
        self._early_deaths += 1
        wait_s = self._backoff.next_s()
        self._due_at = self._clock() + wait_s
        return wait_s

    def reset(self) -> None:
        """Forget all deaths, so that the next start is due now."""
        self._early_deaths = 0
        self._backoff.reset()
        self._due_at = self._clock()

    def _is_stable(self) -> bool:
        return self._clock() - self._started_at >= STABLE_AFTER_S
