"""The line that a busy relay logs once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from outbox.durations import format_duration
from outbox.operations.due_age import oldest_due_s

from .maintenance_task import TaskRun

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 60.0
# The deliveries that are read for the age of the oldest one at most, of each kind.
READ_LIMIT = 1000


class MinuteReport:
    """Counts the dispatches of one relay, and logs them if there were any.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, database: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._deliveries = 0
        self._batches = 0
        self._busy_s = self._longest_s = 0.0

    def note(self, deliveries: int, took_s: float) -> None:
        """Count one batch.

        Args:
            took_s: seconds from the claim to the commit.
        """
        self._deliveries += deliveries
        self._batches += 1
        self._busy_s += took_s
        self._longest_s = max(self._longest_s, took_s)

    def run(self) -> TaskRun:
        """Log the counts since the last call, and begin anew."""
        if self._batches:
            self._log(oldest_due_s(self._database, limit=READ_LIMIT))
        self._begin()
        return TaskRun()

    def _log(self, lag_s: float) -> None:
        duration_s, mean_s = self._clock() - self._since, self._busy_s / self._batches
        times = map(format_duration, (duration_s, mean_s, self._longest_s, lag_s))
        logger.info(
            "dispatched %d deliveries of database %r in %d batches within %s; "
            "a batch took %s, the longest %s; oldest due %s",
            *(self._deliveries, self._database, self._batches, *times),
            extra={
                "database": self._database,
                "deliveries": self._deliveries,
                "batches": self._batches,
                "mean_batch_s": mean_s,
                "longest_batch_s": self._longest_s,
                "oldest_due_s": lag_s,
                "duration_s": duration_s,
            },
        )
