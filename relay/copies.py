"""Copies of one delivery's message: each dispatch makes another, and names it so that it is known again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from django.utils import timezone

from .batches import OutgoingBatch, OutgoingPack
from .ids import hashed_uuid
from .messages import Outgoing
from .packing import block_of, blocks_around

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Overdue(NamedTuple):
    """A delivery that was dispatched, and that no worker has confirmed in time.

    Args:
        queue: the queue to which its message went.
        batched: it may have gone in a batch, or by itself.
        pack: with how many others at most it may have gone in a pack; 0 for none.
        retried: Dramatiq may have put another copy in the place of the one that the relay sent.
    """

    delivery_id: int
    event_id: UUID
    handler: str
    dispatched_at_us: int
    queue: str = ""
    batched: bool = False
    pack: int = 0
    retried: bool = False


@dataclass
class Held:
    """Deliveries whose message is with its broker, and those whose broker is away."""

    there: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


def copy_id(outgoing: Outgoing) -> str:
    """Return the text of a UUID that no other dispatch of the same deliveries has."""
    claimed = outgoing.claimed
    if type(outgoing) is Outgoing:  # nearly always
        return _of_delivery(claimed.event_id, claimed.delivery_id, claimed.dispatched_at_us)
    if isinstance(outgoing, OutgoingBatch):
        return _of_batch(claimed.handler, claimed.dispatched_at_us)
    if isinstance(outgoing, OutgoingPack) and len(outgoing.rows) > 1:
        block = block_of(outgoing.rows, outgoing.size)
        return _of_pack(claimed.handler, claimed.dispatched_at_us, outgoing.size, *block)
    return _of_delivery(claimed.event_id, claimed.delivery_id, claimed.dispatched_at_us)


def copy_ids(overdue: Overdue) -> list[str]:
    """Return what `copy_id` may have returned when a delivery was dispatched."""
    ids = [_of_delivery(str(overdue.event_id), overdue.delivery_id, overdue.dispatched_at_us)]
    if overdue.batched:
        ids.append(_of_batch(overdue.handler, overdue.dispatched_at_us))
    if overdue.pack:
        ids += [
            _of_pack(overdue.handler, overdue.dispatched_at_us, overdue.pack, *block)
            for block in blocks_around(overdue.delivery_id, overdue.pack)
        ]
    return ids


def microseconds(moment: datetime) -> int:
    """Return a time as the database has it as microseconds since 1970."""
    # Naive where USE_TZ is off.
    aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return (aware - EPOCH) // timedelta(microseconds=1)


def _of_delivery(event_id: str, delivery_id: int, dispatched_at_us: int) -> str:
    # Written out, as a hash takes three times as long: when, which delivery, and for those of other databases
    # five random digits of the event's id.
    return f"{_moment(dispatched_at_us)}{event_id[-5:-3]}-a{event_id[-3:]}-{delivery_id:012x}"


@lru_cache(maxsize=8)  # all of a batch have the same
def _moment(dispatched_at_us: int) -> str:
    digits = f"{dispatched_at_us:013x}"  # 13 are enough until 2112
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12]}"


def _of_batch(handler: str, dispatched_at_us: int) -> str:
    # The rows of a batch have nothing else in common: one statement claims no more than one batch.
    return _uuid4(f"{handler} batch {dispatched_at_us}".encode())


def _of_pack(handler: str, dispatched_at_us: int, size: int, level: int, number: int) -> str:
    # One statement may claim many packs, of different blocks.
    return _uuid4(f"{handler} pack {dispatched_at_us} {size} {level} {number}".encode())


def _uuid4(name: bytes) -> str:
    # RedisBroker's own are random, and somebody may tell by their form.
    return hashed_uuid(name, version=4)
