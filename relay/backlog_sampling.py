"""The maintenance task that samples the backlog."""

from __future__ import annotations

import time
from collections.abc import Callable

from outbox.operations.backlog_sampling import sample_backlog

from .maintenance_task import MaintenanceTask, TaskRun

MINUTE_S = 60.0
# A sample is written this long after the end of its minute.
_AFTER_END_S = 2.0
# A sample of the last minute may be written at any time of the present one, so a late run needs no haste.
_SHORTEST_WAIT_S = 30.0


def sampling_task(make: Callable[..., MaintenanceTask], database: str) -> MaintenanceTask:
    """Return the task that samples the backlog of a database after each minute.

    Args:
        make: makes a task from its name, its run and its interval.
    """

    def run() -> TaskRun:
        # A fixed interval alone would drift past a minute now and then.
        task.retry_in(max(_until_next_sample_s(), _SHORTEST_WAIT_S))
        sample_backlog(database)
        return TaskRun()

    task = make("sampling", run, interval_s=MINUTE_S)
    task.due_at += _until_next_sample_s()
    return task


def _until_next_sample_s() -> float:
    return MINUTE_S + _AFTER_END_S - time.time() % MINUTE_S
