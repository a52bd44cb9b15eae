"""The maintenance tasks of a relay: heartbeat, redelivery, ending stale waits, pruning."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any
from uuid import uuid4

from django.db.models.functions import Now

from outbox.models import Delivery, PausedHandler, ProcessHeartbeat
from outbox.models.ordering_keys import BEFORE_ALL
from outbox.models.row_locks import brief_transaction
from outbox.process_fields import process_fields
from outbox.registry import registry

from .backlog_sampling import sampling_task
from .handler_changes import CHANGES_INTERVAL_S, HandlerChanges
from .maintenance_task import BUSY_SHARE, MaintenanceTask, TaskRun
from .maintenance_thread import MaintenanceThread
from .minute_report import REPORT_INTERVAL_S, MinuteReport
from .operator_jobs import jobs_task
from .orphans import Orphans
from .owner_lock import OwnerLock
from .pruning_task import Pruning
from .redelivery import AskBrokers, Redelivery, redeliver_interval_s

BEAT_INTERVAL_S = 5.0
# An idle relay asks its brokers for their markers. A busy relay asks with each batch.
LOSS_INTERVAL_S = 2.0
PRUNE_INTERVAL_S = 60.0
UNBLOCK_INTERVAL_S = 5.0
# A resumed handler has its first deliveries at once; this makes the others due.
END_WAITS_INTERVAL_S = 15.0
KEY_CHUNK = 1000

# The more dead rows there are, the longer a scan past them takes. So a task that scans gets this share of the
# time and runs less often.
SCAN_SHARE = 0.05
# The share of pruning in a thread of its own: at half of its speed it still deletes faster than publishers
# write.
PRUNE_SHARE = 0.5

RUNNING = "running"
BEHIND = "maintenance behind"


class Maintenance:
    """The maintenance tasks of one relay; each is a few short statements.

    The relay's loop calls all methods. With `beside`, the tasks other than the heartbeat run in a thread.

    Args:
        queues: the queues that the relay serves; empty for all.
        ask: asks the brokers for overdue deliveries; without it all of these are redelivered.
        repair_losses: checks the markers of the brokers, and redelivers lost deliveries; returns how many.
        beside: whether the tasks run in a thread, beside dispatching; `run_due_tasks` starts it.
        made_due: called in the thread when a task has made deliveries due.
        at_end: called in the thread when it ends.
        report: called with the relay's new state and its reason when the tasks are late, or no longer.
        problems: returns the relay's present problems for its heartbeat, each with its `kind` and `cause`.
        key_chunk: the ordering keys and stale waits of one run at most.
        owner: the lock of this process, if it runs the handlers.
        in_memory: returns the deliveries that this process has in its memory.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        database: str,
        queues: tuple[str, ...] = (),
        ask: AskBrokers | None = None,
        repair_losses: Callable[[], int] = lambda: 0,
        beside: bool = False,
        made_due: Callable[[], object] = lambda: None,
        at_end: Callable[[], object] = lambda: None,
        report: Callable[[str, str], object] = lambda _state, _detail: None,
        problems: Callable[[], list[dict[str, Any]]] = list,
        key_chunk: int = KEY_CHUNK,
        owner: OwnerLock | None = None,
        in_memory: Callable[[], Collection[int]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.relay_id = owner.process_id if owner else uuid4()
        self._database = database
        self._queues = queues
        self._problems = problems
        self._key_chunk = key_chunk
        self._report = report
        self._clock = clock
        self._repair_losses = repair_losses
        own = owner.number if owner else None
        self._redelivery = Redelivery(database=database, ask=ask, queues=queues, own=own)
        self._orphans = Orphans(database=database, own=own, in_memory=in_memory, clock=clock)
        self.pruning = Pruning(database, clock)
        self.changes = HandlerChanges(database=database, queues=queues)
        self._dispatched = 0
        self._reported = 0
        self._state = (RUNNING, "")
        self._after_key = BEFORE_ALL
        self._minute = MinuteReport(database, clock)
        self._make_tasks(prune_share=PRUNE_SHARE if beside else BUSY_SHARE)
        self._thread: MaintenanceThread | None = None
        if beside:
            self._thread = MaintenanceThread(
                self._tasks, database=database, made_due=made_due, at_end=at_end, clock=clock
            )

    def _make_tasks(self, *, prune_share: float) -> None:
        task = partial(MaintenanceTask, clock=self._clock)
        scan = partial(task, share=SCAN_SHARE)
        self._watch = task("watch", self._watch_tasks, interval_s=BEAT_INTERVAL_S)
        self._report_minute = task("report", self._minute.run, interval_s=REPORT_INTERVAL_S)
        self._report_minute.due_at += REPORT_INTERVAL_S
        self._beat = task("heartbeat", self._beat_once, interval_s=BEAT_INTERVAL_S)
        self._redeliver = scan(
            "redelivery", lambda: TaskRun(self.redeliver()), interval_s=redeliver_interval_s()
        )
        self._check_losses = task(
            "losses", lambda: TaskRun(self._repair_losses()), interval_s=LOSS_INTERVAL_S, share=BUSY_SHARE
        )
        self._tasks = (
            self._redeliver,
            self._check_losses,
            task("orphans", self._orphans.run, interval_s=self._orphans.interval_s, share=BUSY_SHARE),
            scan("handler changes", self.changes.run, interval_s=CHANGES_INTERVAL_S),
            scan("unblocking", self._unblock_some, interval_s=UNBLOCK_INTERVAL_S, busy_share=SCAN_SHARE),
            scan("ending stale waits", self._end_some_waits, interval_s=END_WAITS_INTERVAL_S),
            sampling_task(scan, self._database),
            jobs_task(task, self._database),
            task("pruning", self.pruning.run, interval_s=PRUNE_INTERVAL_S, busy_share=prune_share),
        )

    def run_due_tasks(self) -> bool:
        """Run the due tasks of the loop; return whether they have made deliveries due."""
        of_loop = (self._watch, self._beat, self._report_minute)
        tasks = (*of_loop, *(() if self._thread else self._tasks))
        made_due = [task.run_if_due() for task in tasks]
        return any(made_due)

    def due_in_s(self) -> float:
        """Return in how many seconds the loop must run its tasks; at most 0.0 for now."""
        tasks = (self._beat,) if self._thread else (self._redeliver, self._check_losses)
        return min(task.due_at for task in tasks) - self._clock()

    def state(self) -> tuple[str, str]:
        """Return the state of a relay whose database and broker answer, with the reason."""
        problem = (self._thread.problem() if self._thread else "") or self.pruning.problem()
        return (BEHIND, problem) if problem else (RUNNING, "")

    def close(self, timeout_s: float) -> None:
        """End the thread; wait for it at most this long."""
        if self._thread is not None:
            self._thread.close(timeout_s)

    def _watch_tasks(self) -> TaskRun:
        if self._thread is not None:
            self._thread.ensure_running()
        if self._state[0] in (RUNNING, BEHIND):
            self._report(*self.state())
        return TaskRun()

    def note_dispatched(self, count: int, took_s: float) -> None:
        """Count a batch of dispatched deliveries for the next heartbeat and the next line of the log."""
        self._dispatched += count
        self._minute.note(count, took_s)

    def note_state(self, state: str, detail: str = "") -> bool:
        """Remember the relay's state and make the heartbeat due; return whether the state is new."""
        if (state, detail) == self._state:
            return False
        self._state = (state, detail)
        self._beat.due_at = self._clock()
        return True

    # ---------------------------------------------------------------- tasks

    def _beat_once(self) -> TaskRun:
        self.beat()
        return TaskRun()

    def beat(self) -> None:
        """Write the relay's heartbeat, with its state, problems and number of dispatched deliveries."""
        state, detail = self._state
        fields: dict[str, Any] = {"dispatched": self._dispatched, "problems": self._problems()}
        if self._dispatched != self._reported:
            fields["last_dispatch_at"] = Now()
            self._reported = self._dispatched
        fields |= {"kind": ProcessHeartbeat.Kind.RELAY, "queues": ",".join(self._queues), **process_fields()}
        beats = ProcessHeartbeat.objects.using(self._database)
        beats.beat(self.relay_id, state=state, detail=detail, **fields)

    def redeliver(self) -> int:
        """Redeliver overdue deliveries whose message no broker has any more; return how many."""
        return self._redelivery.run()

    def _unblock_some(self) -> TaskRun:
        return TaskRun(self.unblock_waiting(), has_more=self._after_key != BEFORE_ALL)

    def unblock_waiting(self) -> int:
        """Unblock ordering keys; return how many deliveries are due.

        A key stays blocked when its worker died after the confirmation and before it unblocked the key, or
        when a duplicate had locked its first delivery at that moment.
        """
        deliveries = Delivery.objects.using(self._database)
        keys, self._after_key = deliveries.next_keys(after=self._after_key, limit=self._key_chunk)
        if not keys:
            return 0
        with brief_transaction(self._database):
            unblocked: int = deliveries.unblock_keys(keys, skipping=registry.skipping())
        return unblocked

    def _end_some_waits(self) -> TaskRun:
        ended = self.end_stale_waits()
        return TaskRun(ended, has_more=ended >= self._key_chunk)

    def end_stale_waits(self) -> int:
        """End a chunk of the waits whose condition is gone; return how many deliveries are due.

        Resuming a handler ends only the first of its waits.
        """
        ended: int = Delivery.objects.using(self._database).end_stale_waits(
            paused=PausedHandler.objects.using(self._database).values("handler"),
            batched=[name for name, handler in registry.handlers.items() if handler.batch],
            limit=self._key_chunk,
        )
        return ended

    def sign_off(self) -> None:
        """Delete the relay's heartbeat, since the relay ends."""
        ProcessHeartbeat.objects.using(self._database).filter(pk=self.relay_id).delete()
