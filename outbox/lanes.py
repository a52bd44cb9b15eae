"""Lanes that stand still behind a failed delivery, and what waits in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import BooleanField, Case, Exists, OuterRef, Q, Subquery, Value, When

from .models import Delivery, Event
from .registry import registry

# Counting what waits behind one delivery stops here.
WAITING_LIMIT = 1000

# So many failed deliveries are looked at for blocked lanes: their number is nobody's promise.
FAILED_LIMIT = 10_000

_UNFINISHED = (Delivery.Status.PENDING, Delivery.Status.DISPATCHED, Delivery.Status.FAILED)


@dataclass(frozen=True)
class BlockedLane:
    """A lane, the failed delivery at its head, and how much waits behind it."""

    handler: str
    key: str
    delivery_id: int
    event_id: UUID
    topic: str
    failed_at: datetime | None
    error: str
    waiting: int


def blocks_its_lane() -> Any:
    """Return the condition for what blocks a lane, among failed deliveries."""
    lane = Delivery.objects.filter(handler=OuterRef("handler"), key=OuterRef("key")).exclude(key="")
    head = lane.filter(status__in=_UNFINISHED).order_by("pk").values("pk")[:1]
    behind = lane.filter(pk__gt=OuterRef("pk"), status=Delivery.Status.PENDING)
    # A case, and a subquery with a limit: neither becomes a join of all deliveries with all others, and only
    # the head of a lane looks for what comes after it.
    is_head_of_others = Case(
        When(pk=Subquery(head), then=Exists(behind)), default=Value(False), output_field=BooleanField()
    )
    return ~Q(key="") & ~Q(handler__in=registry.skipping()) & Q(is_head_of_others)


def blocked_lanes(database: str, *, limit: int) -> list[BlockedLane]:
    """Return the blocked lanes by handler, no more than `limit` of them."""
    deliveries = Delivery.objects.using(database)
    failed = deliveries.failed().order_by("handler", "pk")
    looked_at = list(failed.exclude(key="").values_list("pk", flat=True)[:FAILED_LIMIT])
    heads = list(failed.filter(blocks_its_lane(), pk__in=looked_at)[:limit])
    topics = _topics(database, [head.event_id for head in heads])
    return [
        BlockedLane(
            handler=head.handler,
            key=head.key,
            delivery_id=head.pk,
            event_id=head.event_id,
            topic=topics.get(head.event_id, ""),
            failed_at=head.finished_at,
            error=head.error.strip().rpartition("\n")[2],
            waiting=waiting_behind(head),
        )
        for head in heads
    ]


def head_of_lane(delivery: Delivery) -> Delivery | None:
    """Return the delivery that the lane of this one waits for; None if it is in no lane, or none does."""
    lane = Delivery.objects.using(delivery._state.db).lane(
        delivery.handler, delivery.key, skipping=registry.skipping()
    )
    head: Delivery | None = lane.defer("error").first() if delivery.key else None
    return head


def waiting_behind(delivery: Delivery) -> int:
    """Return how many pending deliveries come after this one in its lane, up to `WAITING_LIMIT`."""
    lane = Delivery.objects.using(delivery._state.db).filter(handler=delivery.handler, key=delivery.key)
    behind = lane.pending().exclude(key="").filter(pk__gt=delivery.pk)
    return int(behind.order_by().values("pk")[:WAITING_LIMIT].count())


def _topics(database: str, event_ids: Sequence[UUID]) -> dict[UUID, str]:
    return dict(Event.objects.using(database).filter(pk__in=event_ids).values_list("pk", "topic"))
