"""Redelivery: what no worker has confirmed in time goes again, unless its message is still on its way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.lifecycle import deliveries_overdue
from outbox.models import Delivery, DeliveryQuerySet

from .copies import Held, Overdue, microseconds

logger = logging.getLogger(__name__)

CHUNK = 1000
# A long backlog is asked about at some speed, yet never keeps the relay from its work for long.
CHUNKS_AT_ONCE = 5

# Every broker gets this long for its answer.
ASK_TIMEOUT_S = 5.0

# A message that is still there is asked about only now and then, and no less often than this.
LONGEST_HOLD = timedelta(minutes=10)
# A broker that was away may have lost what it had, so it is asked soon.
AWAY_HOLD = timedelta(seconds=30)

# The broker's word holds a delivery for so many CONFIRM_TIMEOUTs since its dispatch. It may be wrong forever:
# about a queue that is always deep, or a body that Redis kept when it evicted the queue.
MAX_TIMEOUTS_HELD = 24


class Ask(Protocol):
    """How to learn from the brokers which messages they still have."""

    def __call__(self, overdue: Sequence[Overdue], *, timeout_s: float) -> Held: ...


class Redelivery:
    """What one relay does about deliveries that are overdue.

    Args:
        ask: asks the brokers; without it all that is overdue goes again.
    """

    def __init__(self, *, database: str, ask: Ask | None) -> None:
        self._database = database
        self._ask = ask

    def run(self) -> int:
        """Work off what is overdue, chunk by chunk, and return how many go again; the rest has to wait."""
        total = 0
        for _ in range(CHUNKS_AT_ONCE):
            overdue, again = self._chunk()
            total += again
            if overdue < CHUNK:
                break
        return total

    def _chunk(self) -> tuple[int, int]:
        """Hold or redeliver the deliveries that are overdue the longest.

        Returns:
            How many are overdue, and how many of these go again.
        """
        overdue = self._overdue()
        held = self._hold([row for row, is_held_too_long in overdue if not is_held_too_long])
        lost = {row.delivery_id for row, _ in overdue} - held
        again = failed = 0
        if lost:
            again, failed = self._deliveries.filter(pk__in=lost).redeliver_overdue(
                limit=CHUNK, max_redeliveries=get_settings().max_redeliveries
            )
        if again or failed:
            deliveries_overdue.send_robust(
                Redelivery, database=self._database, redelivered=again, failed=failed
            )
        return len(overdue), again

    def _overdue(self) -> list[tuple[Overdue, bool]]:
        too_long_ago = Now() - MAX_TIMEOUTS_HELD * get_settings().confirm_timeout
        rows = self._deliveries.overdue().order_by("confirm_by")
        # A retry leaves its error on the row.
        rows = rows.annotate(retried=_says(~Q(error="")), stale=_says(Q(dispatched_at__lt=too_long_ago)))
        columns = ("pk", "event_id", "handler", "dispatched_at", "retried", "stale")
        return [
            (Overdue(pk, event_id, handler, microseconds(at) if at else 0, retried=retried), bool(stale))
            for pk, event_id, handler, at, retried, stale in rows.values_list(*columns)[:CHUNK]
        ]

    def _hold(self, overdue: Sequence[Overdue]) -> set[int]:
        """Hold what may still be run, and return which deliveries these are."""
        if self._ask is None or not overdue:
            return set()
        held = self._ask(overdue, timeout_s=ASK_TIMEOUT_S)
        timeout = get_settings().confirm_timeout
        self._deliveries.filter(pk__in=held.there).extend(min(timeout, LONGEST_HOLD))
        self._deliveries.filter(pk__in=held.unknown).extend(min(timeout, AWAY_HOLD))
        if held.unknown:
            logger.warning("%d overdue deliveries wait for their broker to come back", len(held.unknown))
        return held.there | held.unknown

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self._database)
        return deliveries


def _says(condition: Q) -> ExpressionWrapper[Q]:
    return ExpressionWrapper(condition, output_field=BooleanField())
