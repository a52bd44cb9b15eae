"""The thread in which a relay maintains its database, beside dispatching and on a connection of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from django.db import connections

from outbox.outages import is_outage
from outbox.own_connection import own_connection

from .backoff import Backoff
from .maintenance_task import MaintenanceTask
from .outage_log import OutageLog
from .stopping import start_without_signals

logger = logging.getLogger(__name__)

# A failed task is tried again after at most this time, if its own interval is not shorter.
RETRY_CAP_S = 5.0

# A failure, or a run without an end, is reported after this time. It is then no short outage, which the loop
# reports, nor a lock.
PATIENCE_S = 60.0

# The longest wait, so that a clock that runs faster than the thread's own wait is followed.
LONGEST_WAIT_S = 1.0


class MaintenanceThread:
    """Runs tasks when they are due; a failed task is tried again, and delays no other task.

    Args:
        made_due: called in the thread when a task has made deliveries due.
        at_end: called in the thread when the thread ends.
        patience_s: how long a task may fail, or run, until `problem` names it.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        tasks: Sequence[MaintenanceTask],
        *,
        database: str,
        made_due: Callable[[], object],
        at_end: Callable[[], object],
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._database = database
        self._made_due = made_due
        self._at_end = at_end
        self._patience_s = patience_s
        self._clock = clock
        self._backoff = Backoff(cap_s=RETRY_CAP_S)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        # Written by the thread and read by the relay's loop, each in one step.
        self._running: tuple[str, float] | None = None
        self._failing: dict[str, tuple[float, str]] = {}
        self._outage = OutageLog(
            logger,
            database,
            complaint="maintenance of database %r waits: %s",
            recovery="maintenance of database %r runs again after %.1f s",
            clock=clock,
        )

    def ensure_running(self) -> None:
        """Start the thread, or start it again if it has died."""
        if self._thread is not None:
            if self._thread.is_alive():
                return
            logger.error("the maintenance thread of database %r died; it starts again", self._database)
        self._thread = threading.Thread(
            target=self._run, name=f"outbox-maintenance-{self._database}", daemon=True
        )
        start_without_signals(self._thread)

    def problem(self) -> str:
        """Return why a task is late, empty if none is."""
        late_before = self._clock() - self._patience_s
        running = self._running
        if running is not None and running[1] < late_before:
            return f"{running[0]} has not ended: the database or a broker is slow, or does not answer"
        for name, (since, error) in list(self._failing.items()):
            if since < late_before:
                return f"{name} fails: {error}"
        return ""

    def close(self, timeout_s: float) -> None:
        """Let the thread end after its statement, and wait for the end.

        Args:
            timeout_s: how long to wait; a server that does not answer keeps the thread for longer.
        """
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with own_connection(self._database):
                while not self._ending.is_set():
                    self._run_due_tasks()
                    next_in_s = min(task.due_at for task in self._tasks) - self._clock()
                    self._ending.wait(min(max(next_in_s, 0.0), LONGEST_WAIT_S))
        finally:
            self._running = None
            self._at_end()

    def _run_due_tasks(self) -> None:
        for task in self._tasks:
            if task.is_due and not self._ending.is_set():
                self._running = (task.name, self._clock())
                self._attempt(task)
                self._running = None

    def _attempt(self, task: MaintenanceTask) -> None:
        try:
            made_due = task.run_if_due()
        except Exception as error:  # no error may end the maintenance
            self._note_failure(task, error)
            return
        if self._failing.pop(task.name, None) is not None and not self._failing:
            self._backoff.reset()
            self._outage.note_success()
        if made_due:
            self._made_due()

    def _note_failure(self, task: MaintenanceTask, error: Exception) -> None:
        connections[self._database].close()
        text = str(error).strip()
        since, _text = self._failing.get(task.name, (self._clock(), ""))
        self._failing[task.name] = (since, text)
        task.retry_in(self._backoff.next_s())
        # An outage makes every task fail, for the same reason.
        self._outage.note_failure(text, shown=f"{task.name}: {text}", exc_info=not is_outage(error))
