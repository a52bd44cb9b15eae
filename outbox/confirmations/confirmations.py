"""The confirmations of one process, with a flusher for each database."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from functools import cache, partial
from time import monotonic

from django.db import connections

from outbox.conf import get_settings
from outbox.posix import call_in_forked_children

from .captured_outcomes import captured_outcomes
from .flusher import Flusher
from .outcome import Outcome
from .outcome_signals import send_settled
from .policy import FlushPolicy

logger = logging.getLogger(__name__)


class Confirmations:
    """Buffers the outcomes of one process, and writes them to the database of each.

    Each database has its own thread, so that no database waits for another one that does not answer.

    Args:
        policy: the sizes and times.
        background: whether threads flush; otherwise only `flush` does.

    Attributes:
        defers_counts: whether the counts of monitored functions start no thread, as tests require.
    """

    def __init__(self, *, policy: FlushPolicy | None = None, background: bool = True) -> None:
        self._policy = policy or FlushPolicy()
        self.defers_counts = False
        self._background = background
        self._waits = True
        self._reset()
        # A forked child has no threads of its parent, and must not write its parent's outcomes.
        call_in_forked_children(self._reset)

    def _reset(self) -> None:
        self._flushers: dict[str, Flusher] = {}

    @property
    def policy(self) -> FlushPolicy:
        """The sizes and times."""
        return self._policy

    @policy.setter
    def policy(self, policy: FlushPolicy) -> None:
        self._policy = policy
        for flusher in list(self._flushers.values()):
            flusher.policy = policy

    def flusher(self, database: str) -> Flusher:
        """Return the flusher of a database."""
        found = self._flushers.get(database)
        if found is not None:
            return found
        on_start = partial(_close_at_exit, self) if self._background else None
        new = Flusher(database, policy=self.policy, sender=Confirmations, on_start=on_start)
        # One step, so that two threads get the same flusher.
        return self._flushers.setdefault(database, new)

    def add(self, *outcomes: Outcome) -> None:
        """Buffer outcomes; the first one of a database starts its flushing thread."""
        captured = captured_outcomes.get()
        if captured is not None:
            captured += outcomes
            return
        by_database: dict[str, Sequence[Outcome]] = {}
        if len(outcomes) == 1:  # nearly always
            by_database[outcomes[0].database] = outcomes
        else:
            for database in {one.database for one in outcomes}:
                by_database[database] = [one for one in outcomes if one.database == database]
        for database, some in by_database.items():
            if database in connections.settings:
                self.flusher(database).add(some)
            else:
                logger.error("delivery %d names an unknown database %r", some[0].delivery_id, database)
        send_settled(Confirmations, outcomes)

    def is_full(self, database: str) -> bool:
        """Return whether the buffer of a database has reached one of its bounds."""
        flusher = self._flushers.get(database)
        return flusher is not None and flusher.is_full

    def wait_for_room(self, database: str) -> None:
        """Wait while the buffer of a database is full, as when the database is away.

        Worker threads wait between two messages; the thread that sends heartbeats to the broker never waits.
        """
        flusher = self._flushers.get(database)
        if flusher is not None:
            flusher.wait_for_room(lambda: self._waits)

    def end_waits(self) -> None:
        """End all waits for room, and start none until `close`: a shutdown waits for the threads."""
        self._waits = False

    def count_dispatched(self, database: str, counts: dict[str, int]) -> None:
        """Count the deliveries that a relay has dispatched, by handler."""
        if get_settings().stats:
            self.flusher(database).count_dispatched(counts)

    def count(self, name: str, result: str, duration_s: float) -> None:
        """Count one call of a monitored function, for which there is no delivery."""
        flusher = self.flusher(get_settings().databases[0])
        flusher.count(name, result, duration_s, deferred=self.defers_counts)

    def drop_counts(self) -> None:
        """Drop the counts of monitored functions since the last flush."""
        for flusher in list(self._flushers.values()):
            flusher.drop_counts()

    def unwritten(self) -> dict[int, str]:
        """Return the handlers of the deliveries of all databases whose outcomes are not written yet."""
        unwritten: dict[int, str] = {}
        for flusher in list(self._flushers.values()):
            unwritten |= flusher.unwritten()
        return unwritten

    def flush(self) -> bool:
        """Write all that is buffered; return whether nothing is left.

        Outcomes stay buffered if the database is away, a row is locked, or the thread is interrupted.
        """
        complete = True
        for flusher in list(self._flushers.values()):
            complete &= flusher.flush()
        return complete

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, and end the threads; outcomes that other threads add meanwhile start a new thread.

        Args:
            timeout_s: how long to retry if a database is away; the time of the policy if not given.
        """
        self._waits = True
        ends_at = monotonic() + (self.policy.close_timeout_s if timeout_s is None else timeout_s)
        flushers = list(self._flushers.values())
        for flusher in flushers:
            flusher.begin_close()
        for flusher in flushers:
            flusher.close(max(0.0, ends_at - monotonic()))


@cache  # a forked child inherits both the cache and the registered function
def _close_at_exit(confirmations: Confirmations) -> None:
    # A web process has no shutdown hook, and would lose its last counts.
    atexit.register(confirmations.close, confirmations.policy.exit_timeout_s)


confirmations = Confirmations()
