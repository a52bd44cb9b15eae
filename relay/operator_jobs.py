"""The maintenance task that runs the jobs of operators."""

from __future__ import annotations

from collections.abc import Callable

from outbox.operations.operator_jobs import run_chunk

from .maintenance_task import MaintenanceTask, TaskRun

# A job waits at most this long for its first chunk.
INTERVAL_S = 15.0
# The share of the time while a job has more to do.
SHARE = 0.5


def jobs_task(make: Callable[..., MaintenanceTask], database: str) -> MaintenanceTask:
    """Return the task that runs the jobs of a database, a chunk at a time.

    Args:
        make: makes a task from its name, its run and its interval.
    """
    return make(
        "operator jobs", lambda: TaskRun(*run_chunk(database)), interval_s=INTERVAL_S, busy_share=SHARE
    )
