"""The relay: wait, claim, dispatch, mark, commit; until a batch comes back short, then wait again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from operator import attrgetter

from django.db import Error, InterfaceError, OperationalError, connections, transaction

from outbox.conf import get_settings
from outbox.confirmations import confirmations
from outbox.errors import BrokerUnavailable
from outbox.lifecycle import batch_dispatched, relay_state_changed
from outbox.models import Delivery
from outbox.registry import Batching, registry
from outbox.wakeup import QUIET_S

from .backoff import BASE_S, CAP_S, Backoff
from .claim import Claim, Taken
from .dispatch import Dispatcher, tell
from .housekeeping import BEAT_INTERVAL_S, Housekeeping
from .marking import Outcome, mark
from .stopping import Stop
from .wakeup import Wakeup

logger = logging.getLogger(__name__)

# After work was found the next look comes soon, since writers do not notify for each commit; then ever later,
# up to POLL_INTERVAL.
SHORTEST_WAIT_S = QUIET_S + 0.01
WAIT_GROWTH = 2.0

# Where many publish, each moment brings a notification. Two looks for a row each cost twice what one for both
# does; so after work was found this time passes for each row before the next look, unless it is urgent. The
# longest is that after which the relay would look without a notification.
CALM_S = 0.01
LONGEST_CALM_S = SHORTEST_WAIT_S

# While a backlog is worked off and no batch was ripe, this time passes before the next look for one.
BATCHES_INTERVAL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """How one relay runs; what is not given comes from the settings.

    Args:
        once: dispatch one batch and end.
        drain: end when nothing is due.
        progress: called with the number of deliveries of each batch.
    """

    database: str
    batch_size: int | None = None
    poll_interval: timedelta | None = None
    queues: tuple[str, ...] = ()
    listen: bool = True
    once: bool = False
    drain: bool = False
    progress: Callable[[int], None] | None = None


class Relay:
    """One relay of one database."""

    def __init__(self, options: RelayOptions, *, stop: Stop) -> None:
        settings = get_settings()
        self.options = options
        self._stop = stop
        self._batch_size = options.batch_size or settings.batch_size
        self._poll_s = (options.poll_interval or settings.poll_interval).total_seconds()
        self._claim = Claim(database=options.database, limit=self._batch_size, queues=options.queues)
        self._dispatcher = Dispatcher(database=options.database)
        listen = options.listen and settings.listen
        self._wakeup = Wakeup(database=options.database, listen=listen, stop=stop, poll_s=self._poll_s)
        self._housekeeping = Housekeeping(
            database=options.database, queues=options.queues, ask=self._dispatcher.holds
        )
        # A server that is away is asked as often as one that is well: when it comes back, nothing waits.
        self._trouble = Backoff(cap_s=min(CAP_S, max(self._poll_s, BASE_S)))
        self._wait_s = SHORTEST_WAIT_S
        self._batches_at = 0.0
        self._left_batches = False

    def run(self) -> None:
        """Relay until asked to stop, or until there is nothing left to do if the options say so."""
        try:
            while not self._stop.requested:
                if self._work() and (self.options.once or self.options.drain):
                    return
        finally:
            self._close()

    def _work(self) -> bool:
        """Do one round, and wait; return whether everything due was dispatched."""
        try:
            if self.options.drain:
                # What nobody has confirmed is due as well.
                self._housekeeping.redeliver()
            found = self._work_off()
            given_back = self._housekeeping.tick()
            self._well()
            if not (given_back or self.options.once or self.options.drain):
                self._wait(found)
        except BrokerUnavailable as problem:
            self._recover("broker away", problem)
            return False
        except (OperationalError, InterfaceError) as problem:
            self._recover("database away", problem)
            return False
        except Error as problem:
            # Not an outage but a fault: a missing migration, a row that no publisher wrote.
            logger.exception("the database refused a statement")
            if self.options.once or self.options.drain:
                raise
            self._recover("database error", problem)
            return False
        return True

    def _work_off(self) -> int:
        """Dispatch all that is due; return the number of deliveries."""
        total = 0
        self._batches_at = 0.0
        while not self._stop.requested:
            taken = self._round()
            total += sum(len(one.rows) for one in taken)
            if self.options.once or not (any(one.more for one in taken) or self._look_again()):
                break
            self._housekeeping.tick()
        return total

    def _look_again(self) -> bool:
        """Say whether to look once more, since the last round did not look at all there may be."""
        if self._left_batches:
            self._batches_at = 0.0
            return True
        if not self.options.drain or self._claim.fronts.were_full:
            return False
        self._claim.fronts.forget()
        return True

    def _round(self) -> list[Taken]:
        """Dispatch one batch of each kind, so that lanes and batched handlers do not wait for the others."""
        taken: list[Taken] = []
        for take, send in self._kinds():
            # A stop waits for the batch in hand, not for the whole round.
            if self._stop.requested:
                break
            taken.append(self._dispatch(take, send))
        return taken

    def _kinds(self) -> Iterator[tuple[Callable[[], Taken], Callable[..., Outcome]]]:
        ordered = any(handler.ordered for handler in registry.handlers.values())
        yield partial(self._claim.take, leave_lanes=ordered), self._dispatcher.send
        if ordered:
            yield partial(self._claim.take_lanes, skipping=registry.skipping()), self._dispatcher.send
        batches = self._batches()
        self._left_batches = bool(batches) and time.monotonic() < self._batches_at
        if self._left_batches:
            return
        ripe = [handler for handler, ripe_in in self._claim.ripe_in(batches).items() if ripe_in <= 0]
        for handler in ripe:
            yield partial(self._claim.take_batch, handler, batches[handler]), self._dispatcher.send_batch
        if not ripe:
            self._batches_at = time.monotonic() + BATCHES_INTERVAL_S

    def dispatch_batch(self) -> int:
        """Claim and dispatch one batch in one short transaction; return its size.

        Raises:
            BrokerUnavailable: with everything rolled back, so that the rows stay pending.
        """
        return len(self._dispatch(self._claim.take, self._dispatcher.send).rows)

    def _batches(self) -> dict[str, Batching]:
        return {
            name: handler.batch
            for name, handler in registry.handlers.items()
            if handler.batch and (not self.options.queues or handler.queue in self.options.queues)
        }

    def _dispatch(self, take: Callable[[], Taken], send: Callable[..., Outcome]) -> Taken:
        # Before the claim: a broker that is away must cost no locks and no attempts.
        self._dispatcher.probe()
        settings = get_settings()
        outcome = Outcome()
        with transaction.atomic(using=self.options.database, durable=True):
            taken = take()
            if taken.rows:
                self._dispatcher.paused = taken.paused
                outcome = send(taken.rows, timeout_s=settings.dispatch_timeout.total_seconds())
                mark(outcome, database=self.options.database, max_attempts=settings.max_dispatch_attempts)
        self._account(outcome)
        self._release_lanes(taken, outcome)
        return taken

    def _release_lanes(self, taken: Taken, outcome: Outcome) -> None:
        """Look again at lanes that were held, or that a delivery has left unsent."""
        left = (*outcome.expired, *(claimed for claimed, _error in (*outcome.failed, *outcome.refused)))
        lanes = {*taken.held_lanes, *((claimed.handler, claimed.key) for claimed in left if claimed.key)}
        if lanes:
            deliveries = Delivery.objects.using(self.options.database)
            deliveries.release_lanes(lanes, skipping=registry.skipping())

    def _account(self, outcome: Outcome) -> None:
        if not outcome.sent and not outcome.refused and not outcome.failed:
            return
        counts = Counter(map(attrgetter("handler"), outcome.sent))
        confirmations.count_dispatched(self.options.database, counts)
        self._housekeeping.note_dispatched(len(outcome.sent))
        if counts:
            batch_dispatched.send_robust(Relay, database=self.options.database, counts=counts)
        tell(outcome, database=self.options.database)
        if self.options.progress is not None:
            self.options.progress(len(outcome.sent))

    def _wait(self, found: int) -> None:
        """Wait for a notification or the next look, whichever comes first."""
        self._wait_s = SHORTEST_WAIT_S if found else min(self._wait_s * WAIT_GROWTH, self._poll_s)
        calm_until = time.monotonic() + min(found * CALM_S, LONGEST_CALM_S)
        until = self._looks_in_s()
        while not self._stop.requested:
            if self._wakeup.wait(until, calm_until=min(calm_until, time.monotonic() + until)):
                if self._wakeup.is_late:
                    self._claim.fronts.hasten()
                self._wait_s = SHORTEST_WAIT_S
                return
            due_in = self._claim.due_in(self._batches())
            if due_in <= 0 or self._housekeeping.tick():
                return
            self._wait_s = min(self._wait_s * WAIT_GROWTH, self._poll_s)
            until = min(due_in, self._looks_in_s())

    def _looks_in_s(self) -> float:
        fronts = self._claim.fronts
        return min(self._wait_s, self._housekeeping.redelivers_in_s(), fronts.hastened_in_s())

    def _recover(self, state: str, problem: Exception) -> None:
        """Let what is away come back: wait with backoff and jitter, outside any transaction."""
        self._tell_state(state, str(problem).strip())
        # What was rolled back is due again.
        self._claim.fronts.forget()
        if isinstance(problem, Error):
            connections[self.options.database].close()
        else:
            self._beat_if_possible()
        left_s = self._trouble.next_s()
        while left_s > 0 and not self._stop.requested:
            # A relay that waits for its broker is alive, and goes on saying so.
            self._stop.wait(min(left_s, BEAT_INTERVAL_S))
            left_s -= BEAT_INTERVAL_S
            if not isinstance(problem, Error):
                self._beat_if_possible()

    def _beat_if_possible(self) -> None:
        try:
            self._housekeeping.tick()
        except Error as problem:
            logger.warning("database away as well: %s", problem)
            connections[self.options.database].close()

    def _well(self) -> None:
        self._trouble.reset()
        self._tell_state("running")

    def _tell_state(self, state: str, detail: str = "") -> None:
        # An outage is told once, and again when it turns out to be another one.
        if self._housekeeping.note_state(state, detail):
            relay_state_changed.send_robust(Relay, database=self.options.database, state=state, detail=detail)

    def _close(self) -> None:
        self._wakeup.close()
        self._dispatcher.close()
        confirmations.close()
        try:
            self._housekeeping.leave()
        except Error as problem:
            logger.warning("could not sign off: %s", problem)
        connections[self.options.database].close()
