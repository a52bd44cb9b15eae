"""Outcomes on their way back from the workers to the table: buffered, and flushed in bulk."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.db import DataError, Error, connections, transaction
from django.db.models import Q
from django.db.models.functions import Now

from .conf import get_settings
from .lifecycle import delivery_failed
from .models import Delivery, HandlerStats, Tally
from .outcomes import Outcome
from .registry import registry
from .wakeup import wake

logger = logging.getLogger(__name__)

FLUSH_SIZE = 500
FLUSH_INTERVAL_S = 0.1
# Nothing waits for the counts of monitored functions, and every web process has some.
COUNT_INTERVAL_S = 5.0
RETRY_INTERVAL_S = 0.2
CLOSE_TIMEOUT_S = 30.0
# A process that ends and has only counts to lose waits no longer than this for its database.
EXIT_TIMEOUT_S = 2.0
# Outcomes held while the database is away. Beyond it the oldest are given up: their deliveries count as
# unconfirmed, and are sent again.
MAX_BUFFERED = 200_000

_Status = Delivery.Status

_diverted: ContextVar[list[Outcome] | None] = ContextVar("outbox_diverted", default=None)


@dataclass(slots=True)
class Batch:
    """What one database is to be told."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    lanes: set[tuple[str, str]] = field(default_factory=set)

    def keep(self, outcome: Outcome) -> None:
        """Keep the latest outcome of a delivery; as in the table, what has ended gives way to success alone.

        A retry may fail for good before the thread that asked for it comes to say so.
        """
        earlier = self.outcomes.get(outcome.delivery_id)
        if earlier is None or earlier.status in _starts(outcome):
            self.outcomes[outcome.delivery_id] = outcome
        if len(self.outcomes) > MAX_BUFFERED:
            del self.outcomes[next(iter(self.outcomes))]
            logger.error("the buffer of outcomes is full; the oldest delivery will be sent again")

    def tally(self, handler: str) -> Tally:
        """Return the tally of a handler."""
        tally = self.tallies.get(handler)
        if tally is None:
            tally = self.tallies[handler] = Tally()
        return tally

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Batch:
        """Return the outcomes as a batch that counts nothing."""
        return cls(
            {outcome.delivery_id: outcome for outcome in outcomes},
            lanes={(outcome.handler, outcome.lane) for outcome in outcomes if outcome.lane},
        )

    def split(self, size: int) -> list[Batch]:
        """Return pieces of at most `size` outcomes; the lanes are with the last, as they go on after all."""
        outcomes = list(self.outcomes.items())
        pieces = [Batch(dict(outcomes[start : start + size])) for start in range(0, len(outcomes), size)]
        pieces = pieces or [Batch()]
        pieces[0].tallies, pieces[-1].lanes = self.tallies, self.lanes
        return pieces

    def put_back(self, older: Batch) -> None:
        """Take back what could not be written."""
        newer, self.outcomes = self.outcomes, older.outcomes
        for outcome in newer.values():
            self.keep(outcome)
        for handler, tally in older.tallies.items():
            self.tally(handler).add(tally)
        self.lanes |= older.lanes


class Confirmations:
    """The buffer of one process, and the thread that flushes it by size, tick and shutdown.

    While `holds_counts` is set the counts of monitored functions start no thread, as tests need it.
    """

    def __init__(self) -> None:
        self.holds_counts = False
        self._reset()
        # A forked child has none of its parent's threads, and must not flush its parent's outcomes.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._flushing = threading.Lock()
        self._given_up = threading.Event()
        self._batches: dict[str, Batch] = {}
        self._counts: dict[str, Tally] = {}
        self._waiting = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, *outcomes: Outcome) -> None:
        """Buffer outcomes; the flushing thread starts with the first one."""
        diverted = _diverted.get()
        if diverted is not None:
            diverted += outcomes
            return
        settings = get_settings()
        with self._changed:
            for outcome in outcomes:
                if outcome.database not in connections.settings:
                    logger.error(
                        "delivery %d names an unknown database %r", outcome.delivery_id, outcome.database
                    )
                    continue
                batch = self._batches.setdefault(outcome.database, Batch())
                if settings.confirm and outcome.status:
                    batch.keep(outcome)
                if outcome.lane and outcome.is_final:
                    batch.lanes.add((outcome.handler, outcome.lane))
                if settings.stats and outcome.verdict:
                    batch.tally(outcome.handler).count(outcome.verdict, outcome.duration_s)
                self._notice(urgent=bool(outcome.lane))

    def count_dispatched(self, database: str, counts: dict[str, int]) -> None:
        """Count what a relay has handed to the broker, by handler."""
        if not get_settings().stats:
            return
        with self._changed:
            batch = self._batches.setdefault(database, Batch())
            for handler, count in counts.items():
                batch.tally(handler).dispatched += count
            self._notice()

    def count(self, name: str, verdict: str, duration_s: float) -> None:
        """Count one call of a monitored function, for which there is no delivery."""
        with self._changed:
            tally = self._counts.get(name)
            if tally is None:
                tally = self._counts[name] = Tally()
                if len(self._counts) == 1 and not self.holds_counts:
                    self._changed.notify_all()
            tally.count(verdict, duration_s)
            if self._thread is None and not self.holds_counts:
                self._start()

    def drop_counts(self) -> None:
        """Forget what monitored functions have counted since the last flush."""
        with self._changed:
            self._counts = {}

    @contextmanager
    def diverted(self) -> Generator[list[Outcome]]:
        """Collect the outcomes of this thread in a list, for a caller that confirms them itself."""
        outcomes: list[Outcome] = []
        token = _diverted.set(outcomes)
        try:
            yield outcomes
        finally:
            _diverted.reset(token)

    def flush(self) -> bool:
        """Write all that is buffered; return whether nothing is left.

        What cannot be written because the database is away, or a row is locked, stays buffered.
        """
        with self._flushing:
            with self._changed:
                batches, self._batches, self._waiting = self._batches, {}, 0
                counts, self._counts = self._counts, {}
            if counts:
                batches.setdefault(get_settings().databases[0], Batch()).put_back(Batch(tallies=counts))
            # Each is written, whether or not the one before it was.
            flushed = [self._flush_batch(database, batch) for database, batch in batches.items()]
        # Outside of the lock, since a receiver may take its time, or flush itself.
        for _written, failures in flushed:
            _tell(failures)
        return all(written for written, _failures in flushed)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Flush and end the thread, trying for `timeout_s` seconds if the database is away.

        What other threads add meanwhile starts a thread anew.
        """
        with self._changed:
            thread, given_up = self._thread, self._given_up
            self._closing = True
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_s)
            given_up.set()
        with self._changed:
            self._thread, self._closing, self._given_up = None, False, threading.Event()
            if self._waiting and (thread is None or not thread.is_alive()):
                # Something came after the thread's last look.
                self._start()
            left = sum(len(batch.outcomes) for batch in self._batches.values())
        if left:
            logger.error("%d outcomes are not confirmed yet; their deliveries may be sent again", left)

    def _notice(self, *, urgent: bool = False) -> None:
        # A lane stands still until its first delivery is confirmed.
        self._waiting += FLUSH_SIZE if urgent else 1
        self._start()
        if self._waiting == 1 or self._waiting >= FLUSH_SIZE:
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            _close_at_exit(self)
            self._thread = threading.Thread(
                target=self._run, args=(self._given_up,), name="outbox-confirmations", daemon=True
            )
            self._thread.start()

    def _run(self, given_up: threading.Event) -> None:
        try:
            while self._wait_for_work() and not given_up.is_set():
                in_a_hurry = self._waiting > 0
                if not self.flush():
                    # Not shutdown but its giving up ends this wait: until then it is worth trying again.
                    given_up.wait(RETRY_INTERVAL_S)
                elif not in_a_hurry:
                    # Until counts are flushed again a web process does better without another connection.
                    connections.close_all()
        finally:
            connections.close_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._counts or self._closing)
            self._changed.wait_for(lambda: self._waiting or self._closing, COUNT_INTERVAL_S)
            self._changed.wait_for(lambda: self._waiting >= FLUSH_SIZE or self._closing, FLUSH_INTERVAL_S)
            return self._waiting > 0 or bool(self._counts)

    def _flush_batch(self, database: str, batch: Batch) -> tuple[bool, list[Outcome]]:
        """Write a batch in pieces; return whether nothing is left, and the failures that were written."""
        left, failures = Batch(), list[Outcome]()
        pieces = batch.split(FLUSH_SIZE)
        while pieces:
            piece = pieces.pop(0)
            rest, failed = self._write(database, piece)
            left.put_back(rest)
            failures += failed
            if rest is piece:
                # The others would fare no better now.
                for later in pieces:
                    left.put_back(later)
                break
        if not (left.outcomes or left.tallies or left.lanes):
            return True, failures
        with self._changed:
            self._batches.setdefault(database, Batch()).put_back(left)
            self._waiting += 1
            # Whoever flushed, it is the thread that tries again.
            self._changed.notify_all()
        return False, failures

    def _write(self, database: str, piece: Batch) -> tuple[Batch, list[Outcome]]:
        """Write a piece; return what waits (the piece itself if nothing was written), and the failures."""
        try:
            try:
                left, written = _write(database, piece)
            except DataError:
                logger.exception("database %r refused a batch; its outcomes go one by one", database)
                left, written = _write_singly(database, piece)
        except Exception:
            # Whatever it is, the outcomes are worth more than this thread's peace.
            logger.warning(
                "database %r is away; %d outcomes wait", database, len(piece.outcomes), exc_info=True
            )
            if not connections[database].in_atomic_block:
                connections[database].close()
            return piece, []
        left.lanes |= _release_lanes(database, piece.lanes)
        return left, [piece.outcomes[pk] for pk in written if piece.outcomes[pk].status == _Status.FAILED]


@cache  # a forked child inherits both this memory and what is registered
def _close_at_exit(buffer: Confirmations) -> None:
    # A web process has no shutdown hook; what it counted last would be lost.
    atexit.register(buffer.close, EXIT_TIMEOUT_S)


confirmations = Confirmations()


def _write(database: str, piece: Batch) -> tuple[Batch, set[int]]:
    connection = connections[database]
    # Kept open between flushes whatever CONN_MAX_AGE says: that is meant for requests.
    if not connection.in_atomic_block and connection.errors_occurred:
        connection.close()
    with transaction.atomic(using=database):
        left, written = confirm(list(piece.outcomes.values()), database)
        HandlerStats.objects.using(database).add(piece.tallies)
    return Batch.of(left), written


def _tell(failures: Sequence[Outcome]) -> None:
    for outcome in failures:
        delivery_failed.send_robust(
            Confirmations,
            database=outcome.database,
            delivery_id=outcome.delivery_id,
            handler=outcome.handler,
            error=outcome.error,
        )


def _release_lanes(database: str, lanes: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Let the next of each lane go, after the transaction that ended the one before; return what waits."""
    try:
        if lanes and Delivery.objects.using(database).release_lanes(lanes, skipping=registry.skipping()):
            wake(database, urgent=True)
    except Error:
        logger.warning("database %r is away; %d lanes wait", database, len(lanes), exc_info=True)
        return lanes
    return set()


def _write_singly(database: str, piece: Batch) -> tuple[Batch, set[int]]:
    left, written = list[Outcome](), set[int]()
    for outcome in piece.outcomes.values():
        try:
            with transaction.atomic(using=database):
                locked, done = confirm([outcome], database)
        except DataError:
            logger.exception("the outcome of delivery %d was refused", outcome.delivery_id)
        else:
            left += locked
            written |= done
    return Batch.of(left), written


# A row that somebody has locked (the relay that is about to commit its dispatch, a transactional handler) is
# passed over and tried again, so that it does not hold up all other confirmations. Success is true whatever
# the row says meanwhile; the other outcomes only end what is still open.
_CONFIRM = """
WITH outcome AS (
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::interval[]) AS o(id, status, error, wait)
), locked AS (
    SELECT d.id FROM outbox_delivery d JOIN outcome o USING (id)
    WHERE d.status IN ('pending', 'dispatched') OR (d.status = 'failed' AND o.status = 'succeeded')
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE outbox_delivery d SET
    status = o.status,
    error = CASE WHEN o.error = '' THEN d.error ELSE o.error END,
    held = CASE WHEN o.status = 'pending' THEN '' ELSE d.held END,
    available_at = CASE WHEN o.status = 'pending' THEN statement_timestamp() + o.wait ELSE d.available_at END,
    confirm_by = CASE WHEN o.status = 'dispatched' THEN statement_timestamp() + o.wait + %s END,
    finished_at = CASE WHEN o.status IN ('pending', 'dispatched') THEN NULL ELSE statement_timestamp() END
FROM outcome o JOIN locked USING (id)
WHERE d.id = o.id
RETURNING d.id
"""


def confirm(outcomes: Sequence[Outcome], database: str) -> tuple[list[Outcome], set[int]]:
    """Write outcomes in one statement.

    Returns:
        Those whose rows were locked by somebody else, and the ids of the deliveries that were changed.
    """
    if not outcomes:
        return [], set()
    if connections[database].vendor != "postgresql":
        return [], {one.delivery_id for one in outcomes if _confirm_portably(one, database)}
    columns = [
        [getattr(one, name) for one in outcomes] for name in ("delivery_id", "status", "error", "wait")
    ]
    parameters: list[Any] = [*columns, get_settings().confirm_timeout]
    with connections[database].cursor() as cursor:
        cursor.execute(_CONFIRM, parameters)
        written = {row[0] for row in cursor.fetchall()}
    missed = [outcome for outcome in outcomes if outcome.delivery_id not in written]
    return (_still_wanted(missed, database) if missed else []), written


def _still_wanted(missed: Sequence[Outcome], database: str) -> list[Outcome]:
    deliveries = Delivery.objects.using(database).filter(pk__in=[outcome.delivery_id for outcome in missed])
    states = dict(deliveries.values_list("pk", "status"))
    for outcome in missed:
        if outcome.delivery_id not in states:
            logger.warning("delivery %d no longer exists; its outcome is dropped", outcome.delivery_id)
    return [outcome for outcome in missed if states.get(outcome.delivery_id) in _starts(outcome)]


def _starts(outcome: Outcome) -> tuple[str, ...]:
    start = (str(_Status.PENDING), str(_Status.DISPATCHED))
    return (*start, str(_Status.FAILED)) if outcome.status == _Status.SUCCEEDED else start


def _confirm_portably(outcome: Outcome, database: str) -> bool:
    open_now = Q(pk=outcome.delivery_id, status__in=_starts(outcome))
    changes: dict[str, object] = {"status": outcome.status, "confirm_by": None, "finished_at": None}
    if outcome.error:
        changes["error"] = outcome.error
    if outcome.status == _Status.PENDING:
        changes |= {"available_at": Now() + outcome.wait, "held": ""}
    elif outcome.status == _Status.DISPATCHED:
        changes["confirm_by"] = Now() + outcome.wait + get_settings().confirm_timeout
    else:
        changes["finished_at"] = Now()
    return bool(Delivery.objects.using(database).filter(open_now).update(**changes))
