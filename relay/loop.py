"""The relay: wait, claim, dispatch, mark, commit; until a claim comes back short, then wait again."""

from __future__ import annotations

import logging

from django.db import Error, connections

from outbox.conf import get_settings
from outbox.confirmations import confirmations
from outbox.errors import BrokerFull, BrokerUnavailable
from outbox.outages import is_conflict, is_outage

from .backoff import BASE_S, CAP_S, Backoff
from .dispatch import Dispatcher
from .maintenance import BEAT_INTERVAL_S, Maintenance
from .relay_options import SHORTEST_WAIT_S, RelayOptions
from .rounds import Rounds
from .state_report import StateReport
from .stopping import Stop
from .wakeup import Wakeup

logger = logging.getLogger(__name__)

# Each wait without a due delivery is this much longer than the wait before, up to POLL_INTERVAL.
WAIT_GROWTH = 2.0

# Under load notifications arrive all the time, and two claims of one row cost twice as much as one claim of
# two rows. So after a dispatch the relay waits as long as the dispatch took, unless a notification is urgent,
# and works for at most half of the time. The longest wait is that after which the relay would check anyway.
MAX_COALESCE_S = SHORTEST_WAIT_S

# A relay that conflicts this often in a row has another problem than a concurrent transaction.
MAX_CONFLICTS = 10

# States of a relay that does not run.
BROKER_AWAY, BROKER_FULL = "broker away", "broker full"
DATABASE_AWAY, DATABASE_ERROR = "database away", "database error"
# How long a relay that ends waits for the database to take its last counts.
CLOSE_TIMEOUT_S = 2.0


class Relay:
    """One relay of one database.

    Args:
        outage: the waits between attempts to reach an unreachable server.
    """

    def __init__(self, options: RelayOptions, *, stop: Stop, outage: Backoff | None = None) -> None:
        settings = get_settings()
        self.options = options
        self._stop = stop
        self._poll_s = (options.poll_interval or settings.poll_interval).total_seconds()
        self._dispatcher = Dispatcher(database=options.database)
        self._wakeup = Wakeup(
            database=options.database,
            listen=options.listen and settings.listen,
            stop=stop,
            poll_s=self._poll_s,
            clock=options.clock,
        )
        self._maintenance = self._make_maintenance()
        self._rounds = Rounds(options, stop=stop, dispatcher=self._dispatcher, maintenance=self._maintenance)
        # The relay probes an unreachable server at the pace of its polls, to notice its return at once.
        self._outage = outage or Backoff(cap_s=min(CAP_S, max(self._poll_s, BASE_S)))
        self._wait_s = options.shortest_wait_s
        self._conflicts = 0
        self._database_is_away = False
        self._report = StateReport(options)
        self._fields = {"database": options.database}

    def _make_maintenance(self) -> Maintenance:
        options = self.options
        connection = connections[options.database]
        # A thread would not see the uncommitted rows of a test case's transaction.
        has_thread = connection.vendor == "postgresql" and not connection.in_atomic_block
        beside = has_thread and options.maintain_beside and not options.ends
        # Connections to a broker belong to one thread.
        asking = Dispatcher(database=options.database) if beside else self._dispatcher
        return Maintenance(
            database=options.database,
            queues=options.queues,
            ask=asking.still_queued,
            repair_losses=asking.losses.run,
            beside=beside,
            made_due=self._wakeup.waker.wake,
            at_end=asking.close,
            report=self._report_state,
            problems=lambda: [*self._wakeup.problems(), *self._rounds.put_off.problems()],
            owner=options.owner,
            in_memory=options.in_memory,
            clock=options.clock,
        )

    def run(self) -> None:
        """Relay until a stop is requested, or until the options end the relay."""
        brokers = [one.broker_name or type(broker).__name__ for broker, one in self._dispatcher.publishers()]
        self._report.started(brokers=brokers, wakeup=self._wakeup.describe())
        self._wakeup.waker.open()
        try:
            while not self._stop.requested:
                if self._run_once() and self.options.ends:
                    return
        finally:
            self._close()

    def _run_once(self) -> bool:
        """Dispatch all due deliveries, maintain, and wait; return whether no outage interrupted this."""
        try:
            self._work()
        except BrokerUnavailable as problem:
            state = BROKER_FULL if isinstance(problem, BrokerFull) else BROKER_AWAY
            detail = str(problem).strip()
        except Error as problem:
            if is_conflict(problem) and self._conflicts < MAX_CONFLICTS:
                self._conflicts += 1
                self._rounds.claim.cursors.reset()
                return False
            state, detail = DATABASE_AWAY, str(problem).strip()
            if not is_outage(problem):
                # A defect, not an outage: a missing migration, or a row that no publisher wrote.
                logger.exception("the database refused a statement", extra=self._fields)
                if self.options.ends:
                    raise
                state = DATABASE_ERROR
        else:
            return True
        # Not while the exception is handled: its traceback keeps the rows of a batch.
        self._wait_out(state, detail)
        return False

    def _work(self) -> None:
        if self.options.drain:
            self._prepare_drain()
        began = self.options.clock()
        dispatched = self._rounds.dispatch_due()
        took_s = self.options.clock() - began
        made_due = self._maintenance.run_due_tasks()
        self._note_recovery()
        if not (made_due or self.options.ends):
            self._wait(dispatched, took_s)

    def _prepare_drain(self) -> None:
        """Make overdue deliveries due, and those that wait for a condition that is gone."""
        self._maintenance.redeliver()
        for make_due in (self._maintenance.changes.apply, self._maintenance.end_stale_waits):
            while not self._stop.requested and make_due():
                continue

    # ---------------------------------------------------------------- wait

    def _wait(self, dispatched: int, took_s: float) -> None:
        """Wait for a notification, or until a check finds a due delivery.

        Args:
            dispatched: how many deliveries were dispatched before this wait.
            took_s: how long their dispatch took.
        """
        self._wait_s = self.options.shortest_wait_s if dispatched else self._longer_wait_s()
        coalesce_until = self.options.clock() + (min(took_s, MAX_COALESCE_S) if dispatched else 0.0)
        wait_s = self._next_check_in_s()
        while not self._stop.requested:
            deadline = self.options.clock() + wait_s
            if self._wakeup.wait(wait_s, coalesce_until=min(coalesce_until, deadline)):
                if self._wakeup.is_late:
                    self._rounds.claim.cursors.request_full_scans()
                self._wait_s = self.options.shortest_wait_s
                return
            self._report_shortfall()
            due_in = self._rounds.due_in()
            if due_in <= 0 or self._maintenance.run_due_tasks():
                return
            self._wait_s = self._longer_wait_s()
            wait_s = min(due_in, self._next_check_in_s())

    def _longer_wait_s(self) -> float:
        return min(self._wait_s * WAIT_GROWTH, self._poll_s)

    def _next_check_in_s(self) -> float:
        full_scan_in_s = self._rounds.claim.cursors.requested_in_s()
        return min(self._wait_s, self._maintenance.due_in_s(), full_scan_in_s)

    # ---------------------------------------------------------------- outages

    def _wait_out(self, state: str, detail: str) -> None:
        """Wait with backoff and jitter, outside any transaction, before a server is tried again."""
        self._rounds.release_lost_batches()
        self._report_state(state, detail)
        # The deliveries of the transaction that was rolled back are due again.
        self._rounds.claim.cursors.reset()
        self._database_is_away = database_is_away = state in (DATABASE_AWAY, DATABASE_ERROR)
        if database_is_away:
            connections[self.options.database].close()
        else:
            self._beat_if_possible()
        left_s = self._outage.next_s()
        while left_s > 0 and not self._stop.requested:
            # A relay that waits for its broker is alive, so its heartbeats continue.
            self._stop.wait(min(left_s, BEAT_INTERVAL_S))
            left_s -= BEAT_INTERVAL_S
            if not database_is_away:
                self._beat_if_possible()

    def _beat_if_possible(self) -> None:
        try:
            self._maintenance.run_due_tasks()
        except Error as problem:
            logger.warning("database away as well: %s", problem, extra=self._fields)
            connections[self.options.database].close()

    def _note_recovery(self) -> None:
        self._conflicts = 0
        self._database_is_away = False
        self._outage.reset()
        self._report_shortfall()

    def _report_shortfall(self) -> None:
        """Report that the relay runs, unless a broker took no message lately."""
        shortfall = self._rounds.shortfall
        if shortfall.reason:
            self._report_state(BROKER_FULL if shortfall.is_full else BROKER_AWAY, shortfall.reason)
        else:
            self._report_state(*self._maintenance.state())

    def _report_state(self, state: str, detail: str) -> None:
        self.options.alive()
        # An outage is reported once, and again when its cause changes.
        if self._maintenance.note_state(state, detail):
            self._report.changed(state, detail)

    def _close(self) -> None:
        self._maintenance.close(CLOSE_TIMEOUT_S)
        self._wakeup.close()
        self._wakeup.waker.close()
        self._dispatcher.close()
        confirmations.close(CLOSE_TIMEOUT_S)
        self._sign_off()
        self._report.stopped()

    def _sign_off(self) -> None:
        if self._database_is_away:
            # Another attempt to connect would only delay the end. The heartbeat is forgotten by its age.
            return
        try:
            self._maintenance.sign_off()
        except Error as problem:
            logger.warning("could not sign off: %s", problem, extra=self._fields)
        connections[self.options.database].close()
