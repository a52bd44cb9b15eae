"""The schedule of one maintenance task."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

# However long the runs take, the task runs this often: a slow run may have another cause, such as a lock.
LONGEST_INTERVAL_S = 60.0
# The share of the time for a task that has more to do, so that the other tasks run too.
BUSY_SHARE = 0.2


class TaskRun(NamedTuple):
    """The result of one run of a task.

    Args:
        made_due: how many deliveries the run has made due.
        has_more: whether the task has more to do at once.
    """

    made_due: int = 0
    has_more: bool = False


class MaintenanceTask:
    """A periodic task that runs less often when its runs take more than their share of the time.

    Args:
        name: the name in logs and in the heartbeat.
        run: one run, which leaves the rest of a long work to the next.
        share: the share of the time that the runs may take.
        busy_share: the share of a task that has more to do; it runs without the interval.
        clock: returns monotonic seconds.

    Attributes:
        due_at: the time of the clock at which the next run is due.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], TaskRun],
        *,
        interval_s: float,
        share: float = 1.0,
        busy_share: float = BUSY_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._run = run
        self._interval_s = interval_s
        self._share = share
        self._busy_share = busy_share
        self._clock = clock
        self.due_at = clock()

    @property
    def is_due(self) -> bool:
        """Whether the next run is due."""
        return self._clock() >= self.due_at

    def run_if_due(self) -> int:
        """Run the task if it is due, and return how many deliveries it has made due."""
        started = self._clock()
        if started < self.due_at:
            return 0
        # Set before the run, which may fail.
        self.due_at = started + self._interval_s
        made_due, has_more = self._run()
        if has_more:
            self.due_at = started
        share = self._busy_share if has_more else self._share
        rest_s = min((self._clock() - started) / share, LONGEST_INTERVAL_S)
        self.due_at = max(self.due_at, started + rest_s)
        return made_due

    def retry_in(self, wait_s: float) -> None:
        """Let the next run be due in this time at the latest, after a failure."""
        self.due_at = min(self.due_at, self._clock() + wait_s)
