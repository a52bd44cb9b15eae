"""Losses: the relay redelivers the deliveries whose messages a broker has lost, and only these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from dramatiq import Broker

from outbox.conf import get_settings
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.observability.telemetry import deliveries_lost
from outbox.registry import registry

from .markers import Markers, Watch
from .messages.dispatch_ids import OverdueDelivery, microseconds
from .publishers import Publisher
from .redelivery import send_redelivered

CHUNK = 1000
# Enough for a long backlog, and few enough that the dispatch never waits for long.
CHUNKS_AT_ONCE = 10

# A broker has this long to answer.
ASK_TIMEOUT_S = 5.0

# Within this time a worker writes the outcomes of messages that it got before the loss. If it cannot, it
# announces them in the broker, after two looks of `UnwrittenOutcomes`.
GRACE = timedelta(seconds=10)


class Losses:
    """The losses of the brokers of one relay.

    Args:
        publishers: returns the brokers of all handlers, each with its publisher.
        grace: how long lost deliveries wait for outcomes that may arrive; `GRACE` if not given.
        chunk: the deliveries that are checked at once.

    Attributes:
        grace: the same time.
        markers: the markers of these brokers.
    """

    def __init__(
        self,
        *,
        database: str,
        publishers: Callable[[], Iterable[tuple[Broker, Publisher]]],
        grace: timedelta | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.markers = Markers(database=database, publishers=publishers)
        self.grace = GRACE if grace is None else grace
        self._database = database
        self._chunk = chunk

    def run(self) -> int:
        """Check the markers of idle brokers, and redeliver lost deliveries; return how many."""
        self.markers.expect()
        for watch in self.markers.watches.values():
            # The loop reports a broker that is away.
            with suppress(BrokerUnavailable):
                watch.publisher.check_marker()
        self.markers.note_losses()
        redelivered = 0
        for broker, watch in self.markers.watches.items():
            with suppress(BrokerUnavailable):
                # The thread that dispatches, or a relay that was killed since, may have asked for a check.
                watch.unrepaired |= self.markers.row(watch).filter(repaired=False).exists()
                redelivered += self._repair(broker, watch) if watch.unrepaired else 0
        return redelivered

    def _repair(self, broker: Broker, watch: Watch) -> int:
        """Check some of the deliveries that were dispatched before the loss; return how many were lost.

        A claim that began before the loss may commit later, and a worker may keep outcomes. So the check is
        repeated until neither is possible, or until `CONFIRM_TIMEOUT` has passed for all of them.
        """
        row = self._with_age(watch)
        if row is None or not row.grace_is_over:
            return 0
        if row.lost_at != watch.lost_at:
            watch.lost_at, watch.after = row.lost_at, None
        redelivered = 0
        for _ in range(CHUNKS_AT_ONCE):
            if watch.after is None:
                watch.is_last = row.last_is_over
            checked, lost = self._check_chunk(broker, watch)
            redelivered += lost
            if checked < self._chunk:
                self._end_pass(watch, row)
                break
        if redelivered:
            deliveries_lost.send_robust(
                Losses, database=self._database, broker=row.broker, redelivered=redelivered
            )
        return redelivered

    def _check_chunk(self, broker: Broker, watch: Watch) -> tuple[int, int]:
        """Return how many deliveries were checked, and how many of these were lost.

        Their rows stay locked meanwhile, so that no other relay redelivers them as well.
        """
        with transaction.atomic(using=self._database):
            rows = list(self._dispatched_before(broker, watch)[: self._chunk])
            if not rows:
                return 0, 0
            sent = [_as_overdue(*columns) for *columns, _confirm_by in rows]
            present = watch.publisher.still_queued(sent, timeout_s=ASK_TIMEOUT_S, after_loss=True)
            lost = {one.delivery_id for one in sent} - present
            if lost:
                Delivery.objects.using(self._database).filter(pk__in=lost).redeliver_lost()
        watch.after = (rows[-1][-1], sent[-1].delivery_id)
        send_redelivered(Losses, self._database, (one for one in sent if one.delivery_id in lost))
        return len(rows), len(lost)

    def _dispatched_before(self, broker: Broker, watch: Watch) -> Any:
        """Return the next deliveries, in the order of the index of unconfirmed ones, and lock them."""
        known = [*registry.handlers, *registry.former_names()]
        handlers = [name for name in known if registry.get(name).actor.broker is broker]
        rows = Delivery.objects.using(self._database).unconfirmed()
        rows = rows.filter(dispatched_at__lt=watch.lost_at, handler__in=handlers)
        if watch.after is not None:
            confirm_by, pk = watch.after
            rows = rows.filter(confirm_by__gte=confirm_by).exclude(Q(confirm_by=confirm_by, pk__lte=pk))
        columns = ("pk", "event_id", "handler", "dispatched_at", "confirm_by")
        return rows.order_by("confirm_by", "pk").unlocked().values_list(*columns)

    def _end_pass(self, watch: Watch, row: Any) -> None:
        """End the check if it was the last one; otherwise it begins again with the next run."""
        watch.after = None
        if row.end_is_over or (watch.is_last and not watch.publisher.workers_have_outcomes()):
            watch.unrepaired = False
            self.markers.row(watch).record_repair(row)

    def _with_age(self, watch: Watch) -> Any:
        settings = get_settings()
        return (
            self.markers.row(watch)
            .with_age_of_loss(
                grace=self.grace,
                last=self.grace + 2 * settings.dispatch_timeout,
                end=settings.confirm_timeout,
            )
            .first()
        )


def _as_overdue(pk: int, event_id: UUID, handler: str, dispatched_at: datetime) -> OverdueDelivery:
    sent = OverdueDelivery(pk, event_id, handler, microseconds(dispatched_at))
    return sent.with_handler(registry.get(handler))
