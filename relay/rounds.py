"""Rounds of claim and dispatch: one batch of each kind, until no delivery is due."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import attrgetter, methodcaller

from django.db import transaction

from outbox.conf import get_settings
from outbox.confirmations import confirmations
from outbox.errors import BrokerFull, BrokerUnavailable
from outbox.models import Delivery
from outbox.operations.unknown_handlers import LONGEST_DELAY
from outbox.registry import BatchOptions, registry

from .batch_limit import BatchLimit
from .capacity import UNLIMITED, Capacity
from .claim import Claim, ClaimResult, ScanCursors
from .claimed_delivery import ClaimedDelivery
from .dispatch import Dispatcher
from .handler_changes import rename_ordered
from .maintenance import Maintenance
from .marking import DispatchResult, mark
from .put_off import PutOffReasons
from .relay_options import RelayOptions
from .round_signals import send_round
from .shortfall import Shortfall
from .stopping import Stop
from .unknown_handlers import UnknownHandlers

# The time between two checks for ready batches while a backlog is dispatched and no batch was ready.
BATCH_CHECK_INTERVAL_S = 0.05


class Rounds:
    """The claims of one relay, and their dispatch.

    Attributes:
        claim: claims deliveries, and checks when the next delivery is due.
        put_off: the reasons for which deliveries are put off.
        shortfall: the last time that a broker took no message.
    """

    def __init__(
        self, options: RelayOptions, *, stop: Stop, dispatcher: Dispatcher, maintenance: Maintenance
    ) -> None:
        self.claim = Claim(
            database=options.database,
            limit=options.batch_size or get_settings().batch_size,
            queues=options.queues,
            cursors=ScanCursors(clock=options.clock),
        )
        self._options = options
        self._stop = stop
        self._dispatcher = dispatcher
        self._maintenance = maintenance
        self.put_off = PutOffReasons(database=options.database, clock=options.clock)
        self._claimed_at = 0.0
        self._unknown_handlers = UnknownHandlers(options.database)
        self._check_batches_at = 0.0
        self._skipped_batches = False
        self._limit = BatchLimit(rows=self.claim.limit, size=self.claim.max_bytes)
        self._lost_batch = False
        self.shortfall = Shortfall(clock=options.clock)
        self._capacity = Capacity(options)
        self._room = UNLIMITED

    def release_lost_batches(self) -> None:
        """Release the memory of lost batches, after the handling of their exceptions.

        Client libraries tie a lost batch into cycles, and a relay rarely collects garbage.
        """
        if self._lost_batch:
            self._lost_batch = False
            gc.collect()

    def due_in(self) -> float:
        """Return in how many seconds a delivery or a batch is due: at most 0.0 if one is, up to infinity."""
        return self.claim.due_in(self._batches())

    def dispatch_due(self) -> int:
        """Dispatch all due deliveries; return their number.

        Raises:
            BrokerUnavailable: if no broker can be reached, or a broker took no message of a batch.
        """
        total = 0
        self._check_batches_at = 0.0
        while not self._stop.requested:
            self._room = self._capacity.wait()
            if not self._room:
                self._maintenance.run_due_tasks()
                if self._capacity.is_used_up and not self._options.ends:
                    self.due_in()  # proves that the database answers, which the loop reports
                    break
                continue
            claims = list(self._dispatch_round())
            self.release_lost_batches()
            # After the round, so that one full queue does not keep the other kinds waiting.
            if self.shortfall.take():
                raise BrokerUnavailable(self.shortfall.reason)
            total += sum(len(claim.rows) for claim in claims)
            if self._options.once or not (any(claim.more for claim in claims) or self._has_unchecked()):
                break
            self._maintenance.run_due_tasks()
        return total

    def _has_unchecked(self) -> bool:
        """Return whether the last round skipped deliveries that may be due."""
        if self._skipped_batches:
            self._check_batches_at = 0.0
            return True
        if not self._options.drain or (self.claim.cursors.were_full and not self._capacity.was_used()):
            return False
        self.claim.cursors.reset()
        return True

    def _dispatch_round(self) -> Iterator[ClaimResult]:
        """Dispatch one batch of each kind, so that no kind waits for the backlog of another.

        A stop waits for the current batch, not for the whole round.
        """
        ordered = any(handler.ordered for handler in registry.handlers.values())
        if ordered:
            self._room = max(1, self._room // 2)
        send = self._dispatcher.send
        yield self._dispatch(self._room, methodcaller("claim_due", skip_ordered=ordered), send)
        if ordered and not self._stop.requested:
            send_ordered = partial(send, running=rename_ordered(self._options.database))
            claim_ordered = methodcaller("claim_ordered", skipping=registry.skipping())
            yield self._dispatch(self._room, claim_ordered, send_ordered)
        if not self._stop.requested:
            yield from self._dispatch_ready_batches()

    def _dispatch_ready_batches(self) -> Iterator[ClaimResult]:
        batches = self._batches()
        self._skipped_batches = bool(batches) and self._options.clock() < self._check_batches_at
        if self._skipped_batches:
            return
        ready = [handler for handler, ready_in in self.claim.ready_in(batches).items() if ready_in <= 0]
        for handler in ready:
            if not self._stop.requested:
                claim_batch = methodcaller("claim_batch", handler, batches[handler])
                # A batch is one message, however many deliveries it has.
                yield self._dispatch(UNLIMITED, claim_batch, self._dispatcher.send_batch)
        if not ready:
            self._check_batches_at = self._options.clock() + BATCH_CHECK_INTERVAL_S

    def _dispatch(
        self, room: int, make_claim: Callable[[Claim], ClaimResult], send: Callable[..., DispatchResult]
    ) -> ClaimResult:
        with self._claim_transaction() as timeout_s:
            claim = make_claim(self._sized_claim(room))
            result = self._send(claim, send, timeout_s)
        return self._finish(claim, result)

    def _sized_claim(self, room: int) -> Claim:
        return replace(self.claim, limit=min(self._limit.rows, room), max_bytes=self._limit.size)

    @contextmanager
    def _claim_transaction(self) -> Iterator[float]:
        """Open the transaction of a claim and its dispatch; yield the time for the broker in seconds.

        Raises:
            BrokerUnavailable: before the claim, so that an outage costs no locks and no attempts.
        """
        try:
            self._dispatcher.probe()
        except BrokerFull as full:
            self.shortfall.note_full(full)
            raise
        self._claimed_at = self._options.clock()
        with transaction.atomic(using=self._options.database, durable=True):
            yield get_settings().dispatch_timeout.total_seconds()

    def _send(
        self, claim: ClaimResult, send: Callable[..., DispatchResult], timeout_s: float
    ) -> DispatchResult:
        """Send claimed deliveries, and record unsent ones on their rows."""
        if not claim.rows:
            return DispatchResult()
        count, size = len(claim.rows), sum(len(row.payload) + len(row.headers) for row in claim.rows)
        began = self._options.clock()
        try:
            result = send(claim.rows, paused=claim.paused, timeout_s=timeout_s)
        except BrokerUnavailable:
            self._note_lost(count, size)
            raise
        if result.lost_batch:
            self._note_lost(count, size)
        else:
            took_s = self._options.clock() - began
            self._limit.note_sent(count, size, took_s=took_s, timeout_s=timeout_s)
        max_attempts = get_settings().max_dispatch_attempts
        mark(result, database=self._options.database, max_attempts=max_attempts)
        self._capacity.own(result.sent)
        return result

    def _note_lost(self, count: int, size: int) -> None:
        self._lost_batch = True
        self._limit.note_lost(count, size)

    def _finish(self, claim: ClaimResult, result: DispatchResult) -> ClaimResult:
        """Count and report a committed dispatch, and unblock the ordering keys of unsent deliveries.

        Keys that the claim blocked are checked too: the earlier delivery may have finished before the commit.
        """
        took_s = self._options.clock() - self._claimed_at
        counts = self._account(result, took_s)
        if claim.rows:
            send_round(claim.rows, result, counts, database=self._options.database, duration_s=took_s)
        self.shortfall.note(result)
        self._note_unknown_handlers(result.unknown)
        unsent = (*result.expired, *(row for row, _error in (*result.failed, *result.refused)))
        keys = {*claim.blocked_keys, *((row.handler, row.key) for row in unsent if row.key)}
        if keys:
            Delivery.objects.using(self._options.database).unblock_keys(keys, skipping=registry.skipping())
        return claim

    def _note_unknown_handlers(self, unknown: Sequence[ClaimedDelivery]) -> None:
        self._unknown_handlers.report(claimed.handler for claimed in unknown)
        reasons = ((row, f"no code declares the handler {row.handler!r}", LONGEST_DELAY) for row in unknown)
        self.put_off.note(reasons, report=False)

    def _account(self, result: DispatchResult, took_s: float) -> dict[str, int]:
        """Count a committed dispatch; return the number of sent deliveries by handler."""
        if result.postponed:
            self.put_off.note(result.postponed)
        if not result.sent:
            return {}
        counts = Counter(map(attrgetter("handler"), result.sent))
        confirmations.count_dispatched(self._options.database, counts)
        self._maintenance.note_dispatched(len(result.sent), took_s)
        if self._options.progress is not None:
            self._options.progress(len(result.sent))
        return counts

    def _batches(self) -> dict[str, BatchOptions]:
        return {
            name: handler.batch
            for name, handler in registry.handlers.items()
            if handler.batch and (not self._options.queues or handler.queue in self._options.queues)
        }
