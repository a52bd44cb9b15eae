"""Redelivery of overdue deliveries: each is dispatched again, unless its message is still in the broker."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import Delivery, DeliveryQuerySet
from outbox.models.relay_verbs import never_confirmed
from outbox.models.row_locks import brief_transaction
from outbox.observability.telemetry import deliveries_overdue, delivery_failed, delivery_redelivered
from outbox.registry import registry
from relay.messages.dispatch_ids import BrokerContents, OverdueDelivery, microseconds

logger = logging.getLogger(__name__)

# The longest interval between two checks for overdue deliveries. With a short CONFIRM_TIMEOUT there are four
# checks per timeout, so that the last one adds at most a quarter to it.
REDELIVER_INTERVAL_S = 10.0
REDELIVERY_CHECKS = 4
SHORTEST_REDELIVER_INTERVAL_S = 0.5

CHUNK = 1000
# Enough to redeliver a long backlog quickly, and few enough that the dispatch never waits for long.
CHUNKS_AT_ONCE = 5

# Every broker has this long to answer.
ASK_TIMEOUT_S = 5.0

# The relay asks again about a message that is still in the broker after this time at the latest.
MAX_EXTENSION = timedelta(minutes=10)
# A broker that was unreachable may have lost messages, so the relay asks again soon.
BROKER_AWAY_EXTENSION = timedelta(seconds=30)

# A broker's answer extends the wait for a confirmation up to this many CONFIRM_TIMEOUTs after the dispatch.
# The answer may stay wrong: for a queue that is always deep, or a body that Redis kept when it evicted the
# queue.
MAX_TIMEOUTS_EXTENDED = 24


class AskBrokers(Protocol):
    """A function that asks the brokers which messages they still have."""

    def __call__(self, overdue: Sequence[OverdueDelivery], *, timeout_s: float) -> BrokerContents: ...


class Redelivery:
    """The redelivery of one relay's overdue deliveries.

    Args:
        queues: redeliver only deliveries to these queues; empty for all.
        ask: asks the brokers; without it all overdue deliveries are redelivered.
        own: the number of this process, if it runs handlers; it leaves the deliveries of others alone.
        chunk: the overdue deliveries that are read at once.
    """

    def __init__(
        self,
        *,
        database: str,
        ask: AskBrokers | None,
        queues: tuple[str, ...] = (),
        own: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._own = own
        self._database = database
        self._queues = queues
        self._ask = ask
        self._chunk = chunk

    def run(self) -> int:
        """Redeliver overdue deliveries, chunk by chunk up to a limit; return how many."""
        total = 0
        for _ in range(CHUNKS_AT_ONCE):
            overdue, redelivered = self._run_chunk()
            total += redelivered
            if overdue < self._chunk:
                break
        return total

    def _run_chunk(self) -> tuple[int, int]:
        """Extend the wait of the oldest overdue deliveries, or redeliver them.

        Returns:
            How many are overdue, and how many of these are redelivered.
        """
        overdue = self._overdue()
        extended = self._extend([row for row, is_too_old in overdue if not is_too_old])
        lost = {row.delivery_id for row, _ in overdue} - extended
        redelivered, failed = list[int](), list[int]()
        if lost:
            redelivered, failed = self._deliveries.filter(pk__in=lost).redeliver_overdue(
                limit=self._chunk, max_redeliveries=get_settings().max_redeliveries
            )
        if redelivered or failed:
            deliveries_overdue.send_robust(
                Redelivery, database=self._database, redelivered=len(redelivered), failed=len(failed)
            )
            self._send_each({row.delivery_id: row for row, _ in overdue}, redelivered, failed)
        return len(overdue), len(redelivered)

    def _send_each(
        self, rows: Mapping[int, OverdueDelivery], redelivered: Sequence[int], failed: Sequence[int]
    ) -> None:
        send_redelivered(Redelivery, self._database, (rows[pk] for pk in redelivered))
        if failed and delivery_failed.receivers:
            error = never_confirmed(get_settings().max_redeliveries)
            for pk in failed:
                delivery_failed.send_robust(
                    Redelivery,
                    database=self._database,
                    delivery_id=pk,
                    event_id=str(rows[pk].event_id),
                    handler=rows[pk].handler,
                    duration_s=0.0,
                    error=error,
                )

    def _overdue(self) -> list[tuple[OverdueDelivery, bool]]:
        """Return the oldest overdue deliveries, and for each whether it is too old for an extension."""
        too_long_ago = Now() - MAX_TIMEOUTS_EXTENDED * get_settings().confirm_timeout
        if not self._deliveries.overdue().exists():
            # Usually; a transaction would cost two more statements.
            return []
        self._import_overdue()
        # A relay can neither dispatch the deliveries of an unknown handler nor look for them at a broker.
        known = [*registry.handlers, *registry.former_names()]
        rows = self._deliveries.overdue().filter(handler__in=known).order_by("confirm_by")
        rows = rows.filter(Q(owner=None) | Q(owner=self._own))
        if self._queues:
            rows = rows.filter(queue__in=self._queues)
        old = ExpressionWrapper(Q(dispatched_at__lt=too_long_ago), output_field=BooleanField())
        columns = ("pk", "event_id", "handler", "dispatched_at", "old")
        with brief_transaction(self._database):
            # Without the rows that a transactional handler has locked, which cannot change now.
            found = list(rows.annotate(old=old).unlocked().values_list(*columns)[: self._chunk])
        return [
            (OverdueDelivery(pk, event_id, handler, microseconds(at) if at else 0), bool(old))
            for pk, event_id, handler, at, old in found
        ]

    def _import_overdue(self) -> None:
        """Import handlers that this relay has not dispatched to since its start."""
        if registry.importer is None:
            return
        unknown = self._deliveries.overdue().exclude(handler__in=list(registry.handlers))
        for name in unknown.values_list("handler", flat=True).distinct()[: self._chunk]:
            registry.find(name)

    def _extend(self, overdue: Sequence[OverdueDelivery]) -> set[int]:
        """Extend the wait of deliveries whose message a worker may still receive; return their ids."""
        if self._ask is None or not overdue:
            return set()
        contents = self._ask(overdue, timeout_s=ASK_TIMEOUT_S)
        timeout = get_settings().confirm_timeout
        self._deliveries.filter(pk__in=contents.present).extend_confirm_by(min(timeout, MAX_EXTENSION))
        self._deliveries.filter(pk__in=contents.unknown).extend_confirm_by(
            min(timeout, BROKER_AWAY_EXTENSION)
        )
        if contents.unknown:
            logger.warning(
                "%d overdue deliveries wait for their broker to come back",
                len(contents.unknown),
                extra={"database": self._database},
            )
        return contents.present | contents.unknown

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self._database)
        return deliveries


def send_redelivered(sender: type, database: str, rows: Iterable[OverdueDelivery]) -> None:
    """Send `delivery_redelivered` for each delivery, if the signal has receivers."""
    if not delivery_redelivered.receivers:
        return
    for row in rows:
        delivery_redelivered.send_robust(
            sender,
            database=database,
            delivery_id=row.delivery_id,
            event_id=str(row.event_id),
            handler=row.handler,
        )


def redeliver_interval_s() -> float:
    """Return the time between two checks for overdue deliveries."""
    share_s = get_settings().confirm_timeout.total_seconds() / REDELIVERY_CHECKS
    return max(SHORTEST_REDELIVER_INTERVAL_S, min(share_s, REDELIVER_INTERVAL_S))
