"""Dispatch ids: each message of a delivery has another one, by which a broker's messages are recognized."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from django.utils import timezone

from outbox.registry import Handler

from .batch import OutgoingBatch
from .message_ids import hashed_uuid
from .single import OutgoingMessage

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OverdueDelivery(NamedTuple):
    """A dispatched delivery that no worker has confirmed in time.

    Args:
        queue: the queue of its message.
        batched: whether it may have been dispatched in a batch.
        former_names: names of the handler, under one of which it may have been dispatched.
    """

    delivery_id: int
    event_id: UUID
    handler: str
    dispatched_at_us: int
    queue: str = ""
    batched: bool = False
    former_names: tuple[str, ...] = ()

    def with_handler(self, handler: Handler) -> OverdueDelivery:
        """Return the delivery with the options of its handler, which its messages depend on."""
        return self._replace(
            queue=handler.queue, batched=handler.batch is not None, former_names=handler.former_names
        )


@dataclass
class BrokerContents:
    """The deliveries whose message is still in its broker.

    Attributes:
        present: ids of deliveries whose message is there.
        unknown: ids of deliveries whose broker cannot be reached.
    """

    present: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


def dispatch_id(outgoing: OutgoingMessage) -> str:
    """Return the text of a UUID that no other dispatch of the same deliveries has."""
    claimed = outgoing.claimed
    if type(outgoing) is OutgoingMessage:  # nearly always
        return _of_delivery(claimed.event_id, claimed.delivery_id, claimed.dispatched_at_us)
    if isinstance(outgoing, OutgoingBatch):
        return _of_batch(claimed.handler, claimed.dispatched_at_us)
    return _of_delivery(claimed.event_id, claimed.delivery_id, claimed.dispatched_at_us)


def possible_dispatch_ids(overdue: OverdueDelivery) -> list[str]:
    """Return all ids that the last dispatch of a delivery may have had."""
    ids = [_of_delivery(str(overdue.event_id), overdue.delivery_id, overdue.dispatched_at_us)]
    if overdue.batched:
        names = (overdue.handler, *overdue.former_names)
        ids += [_of_batch(name, overdue.dispatched_at_us) for name in names]
    return ids


def microseconds(moment: datetime) -> int:
    """Return a time from the database as microseconds since 1970."""
    # The time is naive if USE_TZ is off.
    aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return (aware - EPOCH) // timedelta(microseconds=1)


def _of_delivery(event_id: str, delivery_id: int, dispatched_at_us: int) -> str:
    # A hash would take three times as long. The parts are the time, the delivery id, and five random digits
    # of the event's id, which tell apart equal delivery ids of several databases.
    return f"{_moment(dispatched_at_us)}{event_id[-5:-3]}-a{event_id[-3:]}-{delivery_id:012x}"


@lru_cache(maxsize=8)  # all deliveries of a claim have the same
def _moment(dispatched_at_us: int) -> str:
    digits = f"{dispatched_at_us:013x}"  # 13 are enough until 2112
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12]}"


def _of_batch(handler: str, dispatched_at_us: int) -> str:
    # Handler and time are all that the deliveries of a batch share, and one statement claims one batch at
    # most.
    # The ids of RedisBroker are random, so these have the form of random ones.
    return hashed_uuid(f"{handler} batch {dispatched_at_us}".encode(), version=4)
