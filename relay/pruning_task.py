"""The pruning of one relay: a part of the events past their retention with each run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from outbox.models import ProcessHeartbeat
from outbox.operations.pruning import PruningPass

from .maintenance_task import TaskRun

# Few enough that the other tasks, and on SQLite the dispatch, do not wait for long.
PRUNE_CHUNKS_AT_ONCE = 5
FORGET_PROCESSES_AFTER = timedelta(days=1)

# A pass over the events past their retention that takes longer than this is reported.
PRUNE_PATIENCE_S = 600.0
PRUNING_IS_BEHIND = (
    "pruning has not deleted all events past RETENTION for more than 10 minutes, so the tables grow; "
    "run more relays, or outbox_prune once"
)


class Pruning:
    """Passes over the events past their retention.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, database: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._pass = PruningPass(database)
        self._since: float | None = None

    def run(self) -> TaskRun:
        """Delete a part of the events."""
        if self._since is None:
            self._since = self._clock()
        self.prune()
        if self._pass.is_complete:
            self._since = None
        return TaskRun(has_more=not self._pass.is_complete)

    def prune(self) -> None:
        """Delete a part of the events past their retention, and heartbeats of processes that died."""
        if self._pass.is_complete:
            ProcessHeartbeat.objects.using(self._database).forget(FORGET_PROCESSES_AFTER)
        self._pass.delete_chunks(PRUNE_CHUNKS_AT_ONCE)

    def problem(self) -> str:
        """Return why the tables grow; empty if a pass has not taken long."""
        is_behind = self._since is not None and self._clock() - self._since > PRUNE_PATIENCE_S
        return PRUNING_IS_BEHIND if is_behind else ""
