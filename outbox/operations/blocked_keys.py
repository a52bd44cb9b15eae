"""Ordering keys that a failed delivery blocks, and the deliveries that wait behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import BooleanField, Case, Exists, OuterRef, Q, Subquery, Value, When

from outbox.models import Delivery, Event
from outbox.registry import registry

# The count of deliveries behind one delivery stops here.
WAITING_LIMIT = 1000

# Failed deliveries that one call checks for blocked keys, as there may be any number of them.
FAILED_LIMIT = 10_000

_UNFINISHED = (Delivery.State.PENDING, Delivery.State.DISPATCHED, Delivery.State.FAILED)


@dataclass(frozen=True)
class BlockedKey:
    """An ordering key, the failed delivery at its head, and the number of deliveries behind it."""

    handler: str
    key: str
    delivery_id: int
    event_id: UUID
    topic: str
    failed_at: datetime | None
    error: str
    waiting: int


def blocks_its_key() -> Any:
    """Return the condition under which a failed delivery blocks its ordering key."""
    return ~Q(key="") & ~Q(handler__in=registry.skipping()) & Q(_is_head_of_others())


def _is_head_of_others() -> Any:
    same_key = Delivery.objects.filter(handler=OuterRef("handler"), key=OuterRef("key")).exclude(key="")
    head = same_key.filter(state__in=_UNFINISHED).order_by("pk").values("pk")[:1]
    behind = same_key.filter(pk__gt=OuterRef("pk"), state=Delivery.State.PENDING)
    # The planner turns neither a CASE nor a subquery with a limit into a join of all deliveries with all
    # others. The second subquery runs only for the head of a key.
    return Case(
        When(pk=Subquery(head), then=Exists(behind)), default=Value(False), output_field=BooleanField()
    )


def blocked_keys(database: str, *, limit: int) -> list[BlockedKey]:
    """Return at most `limit` blocked ordering keys, by handler."""
    deliveries = Delivery.objects.using(database)
    failed = deliveries.failed().exclude(key="").exclude(handler__in=registry.skipping())
    checked = list(failed.order_by("handler", "pk").values_list("pk", flat=True)[:FAILED_LIMIT])
    # By their ids alone: with the conditions above the planner may read all failed deliveries again.
    found = deliveries.filter(_is_head_of_others(), pk__in=checked).order_by("handler", "pk")[:limit]
    heads = [head for head in found if head.state == Delivery.State.FAILED]
    topics = _topics(database, [head.event_id for head in heads])
    return [
        BlockedKey(
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


def head_of_key(delivery: Delivery) -> Delivery | None:
    """Return the first unfinished delivery with the same ordering key, None if there is none or no key."""
    unfinished = Delivery.objects.using(delivery._state.db).unfinished_of_key(
        delivery.handler, delivery.key, skipping=registry.skipping()
    )
    head: Delivery | None = unfinished.defer("error", "message_options").first() if delivery.key else None
    return head


def waiting_behind(delivery: Delivery) -> int:
    """Return the number of pending deliveries after this one with its key, up to `WAITING_LIMIT`."""
    same_key = Delivery.objects.using(delivery._state.db).filter(handler=delivery.handler, key=delivery.key)
    behind = same_key.pending().exclude(key="").filter(pk__gt=delivery.pk)
    return int(behind.order_by().values("pk")[:WAITING_LIMIT].count())


def _topics(database: str, event_ids: Sequence[UUID]) -> dict[UUID, str]:
    return dict(Event.objects.using(database).filter(pk__in=event_ids).values_list("pk", "topic"))
