"""The result of a dispatch, and its record on the rows before the claim commits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from socket import gethostname

from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.operations.unknown_handlers import returned
from relay.messages.single import OutgoingMessage

from .backoff import delay_for
from .claimed_delivery import ClaimedDelivery
from .publishers import Refusal

# The delay of messages whose broker does not take them now.
BROKER_AWAY_DELAY = timedelta(seconds=5)


@dataclass
class DispatchResult:
    """The deliveries of a claim, by the result of their dispatch.

    Attributes:
        sent: accepted by the broker.
        refused: cannot be sent now, with the error; pending again, or failed after too many refusals.
        postponed: pending again after a delay, with the reason.
        failed: cannot ever be sent, with the error.
        expired: claimed after the expiry of their event.
        paused: their handler is paused.
        unreachable: why a broker was not asked to take its messages.
        shortfall: why a broker did not take messages that it may take later; empty if none did so.
        lost_batch: whether it is unknown which messages of a batch a broker has taken.
        unknown: their handler is not declared; pending again after a delay that grows.
    """

    sent: list[ClaimedDelivery] = field(default_factory=list)
    refused: list[tuple[ClaimedDelivery, str]] = field(default_factory=list)
    postponed: list[tuple[ClaimedDelivery, str, timedelta]] = field(default_factory=list)
    failed: list[tuple[ClaimedDelivery, str]] = field(default_factory=list)
    expired: list[ClaimedDelivery] = field(default_factory=list)
    paused: list[ClaimedDelivery] = field(default_factory=list)
    unreachable: BrokerUnavailable | None = None
    shortfall: str = ""
    lost_batch: bool = False
    unknown: list[ClaimedDelivery] = field(default_factory=list)

    def add_sent(self, outgoing: Iterable[OutgoingMessage], *, unsent: Iterable[OutgoingMessage]) -> None:
        """Add the deliveries of messages to the sent ones, except those of `unsent`."""
        left_out = {id(message) for message in unsent}
        # Nearly always all messages were sent.
        messages = [one for one in outgoing if id(one) not in left_out] if left_out else outgoing
        self.sent += [row for message in messages for row in message.rows]

    def postpone(
        self,
        outgoing: Iterable[OutgoingMessage],
        problem: BrokerUnavailable,
        *,
        delay: timedelta = BROKER_AWAY_DELAY,
    ) -> None:
        """Postpone the deliveries of messages whose broker is unreachable."""
        reason = f"the broker is away: {problem}"
        self.postponed += [(row, reason, delay) for message in outgoing for row in message.rows]

    def add_refusal(self, refusal: Refusal) -> None:
        """Add the deliveries of a message that was not sent."""
        if refusal.is_proved:
            self.refused += [(row, refusal.error) for row in refusal.outgoing.rows]
            return
        self.shortfall = self.shortfall or refusal.error
        reason = f"the broker did not take the message: {refusal.error}"
        self.postponed += [(row, reason, BROKER_AWAY_DELAY) for row in refusal.outgoing.rows]


def mark(result: DispatchResult, *, database: str, max_attempts: int) -> None:
    """Record unsent deliveries on their rows, within the claim's transaction.

    Args:
        max_attempts: refusals after which a delivery fails; it then moves to `result.failed`.
    """
    deliveries = Delivery.objects.using(database)
    for claimed, error in result.failed:
        deliveries.filter(pk=claimed.delivery_id).fail(error)
    if result.expired:
        deliveries.filter(pk__in=_ids(result.expired)).expire()
    if result.paused:
        deliveries.filter(pk__in=_ids(result.paused)).put_to_wait(Delivery.WaitsFor.RESUME)
    for (error, delay), ids in _by_reason(result.postponed).items():
        deliveries.filter(pk__in=ids).postpone(delay, error)
    _mark_unknown(result.unknown, database)
    _mark_refused(result, database, max_attempts)


def _mark_unknown(unknown: Iterable[ClaimedDelivery], database: str) -> None:
    groups: dict[tuple[str, timedelta, str], list[int]] = defaultdict(list)
    for claimed in unknown:
        delay, options = returned(json.loads(claimed.message_options or "{}"))
        groups[claimed.handler, delay, json.dumps(options)].append(claimed.delivery_id)
    for (handler, delay, stored), ids in groups.items():
        rows = Delivery.objects.using(database).filter(pk__in=ids)
        rows.postpone(delay, f"the relay on {gethostname()} does not know the handler {handler!r}")
        rows.update(message_options=json.loads(stored))


def _mark_refused(result: DispatchResult, database: str, max_attempts: int) -> None:
    refused, result.refused = result.refused, []
    if not refused:
        return
    deliveries = Delivery.objects.using(database)
    refusals = deliveries.filter(pk__in=_ids(claimed for claimed, _error in refused)).refuse()
    for claimed, error in refused:
        row, times = deliveries.filter(pk=claimed.delivery_id), refusals[claimed.delivery_id]
        if times >= max_attempts:
            row.fail(f"could not be sent in {times} attempts: {error}")
            result.failed.append((claimed, error))
        else:
            row.reschedule(timedelta(seconds=delay_for(times)), f"could not be sent: {error}")
            result.refused.append((claimed, error))


def _by_reason(
    postponed: Iterable[tuple[ClaimedDelivery, str, timedelta]],
) -> dict[tuple[str, timedelta], list[int]]:
    groups: dict[tuple[str, timedelta], list[int]] = defaultdict(list)
    for claimed, error, delay in postponed:
        groups[error, delay].append(claimed.delivery_id)
    return groups


def _ids(rows: Iterable[ClaimedDelivery]) -> list[int]:
    return [row.delivery_id for row in rows]
