"""Replaying old events to the handlers that are subscribed now, for an operator."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction

from outbox.models import Delivery, Event, NewDelivery
from outbox.publishing.notify import wake_on_commit
from outbox.publishing.publish import delivery_to
from outbox.registry import Handler, registry
from outbox.topics import check_pattern, compile_pattern
from outbox.uuid7 import uuid7_floor

from .chunks import Done, ignore, in_chunks

CHUNK = 1000


class OldEvent(NamedTuple):
    """The fields of an event that determine its handlers and ordering keys."""

    id: UUID
    topic: str
    key: str


def replay_event(
    database: str, event_id: UUID, *, handler: str | None = None, dry_run: bool = False
) -> Counter[str]:
    """Write new deliveries of one event.

    Args:
        database: the database alias.
        event_id: the event.
        handler: the name of the only handler to deliver to; all subscribed handlers if not given.
        dry_run: count the deliveries and write nothing.

    Returns:
        The number of new deliveries by handler.

    Raises:
        UnknownHandler: if no handler has the name.
        Event.DoesNotExist: if the database has no such event.
    """
    only = registry.get(handler) if handler else None
    rows = list(Event.objects.using(database).filter(pk=event_id).values_list("pk", "topic", "key"))
    if not rows:
        raise Event.DoesNotExist(f"event {event_id} does not exist; it may have been pruned")
    return replay_events(database, [OldEvent(*row) for row in rows], only, dry_run=dry_run)


def replay_topic(
    database: str,
    pattern: str,
    *,
    since: datetime,
    until: datetime | None = None,
    handler: str | None = None,
    dry_run: bool = False,
    at_most: int | None = None,
    done: Done = ignore,
) -> Counter[str]:
    """Write new deliveries of the events of a topic, in chunks of one transaction each.

    Args:
        database: the database alias.
        pattern: a topic or a pattern such as `shop.*`.
        since: the earliest time of publication.
        until: the end of the span, exclusive; now if not given.
        handler: the name of the only handler to deliver to; all subscribed handlers if not given.
        dry_run: count the deliveries and write nothing.
        at_most: end after the chunk with which more deliveries than this are counted.
        done: called with the number of events that were read in each chunk.

    Returns:
        The number of new deliveries by handler.

    Raises:
        UnknownHandler: if no handler has the name.
        InvalidTopic: if the pattern is malformed.
    """
    only = registry.get(handler) if handler else None
    check_pattern(pattern)
    matches = compile_pattern(pattern).fullmatch
    # The upper bound excludes events that the replayed handlers publish.
    end = uuid7_floor(until or datetime.now(UTC))
    span = Event.objects.using(database).filter(pk__gte=uuid7_floor(since), pk__lt=end)
    written: Counter[str] = Counter()
    # No index contains topics: each chunk is a range of the primary key, and topics are compared here.
    for rows in in_chunks(span, "topic", "key", size=CHUNK):
        events = [event for event in map(OldEvent._make, rows) if matches(event.topic)]
        written += replay_events(database, events, only, dry_run=dry_run)
        done(len(rows))
        if at_most is not None and written.total() > at_most:
            break
    return written


def replay_events(
    database: str, events: Sequence[OldEvent], only: Handler | None, *, dry_run: bool = False
) -> Counter[str]:
    """Write new deliveries of some events in one transaction; return their number by handler.

    Args:
        only: the only handler to deliver to; all subscribed handlers if not given.
        dry_run: count the deliveries and write nothing.
    """
    deliveries = Delivery.objects.using(database)
    with transaction.atomic(using=database):
        ids = [event.id for event in events]
        # The lock keeps pruning from deleting an event that gets new deliveries.
        locked = (
            Event.objects.using(database).filter(pk__in=ids).order_by("pk").select_for_update(no_key=True)
        )
        existing = set(ids if dry_run else locked.values_list("pk", flat=True))
        new = _new_deliveries([event for event in events if event.id in existing], deliveries, only)
        if not dry_run:
            deliveries.replay(new)
            wake_on_commit(database)
    return Counter(delivery.handler for _event_id, _key, delivery in new)


def _new_deliveries(
    events: Sequence[OldEvent], deliveries: Any, only: Handler | None
) -> list[tuple[UUID, str, NewDelivery]]:
    addressed = _addressed(events, deliveries)
    return [
        (event.id, event.key, delivery_to(handler))
        for event in events
        for handler in dict.fromkeys([*registry.subscribed_to(event.topic), *addressed[event.id]])
        if only is None or handler is only
    ]


def _addressed(events: Sequence[OldEvent], deliveries: Any) -> dict[UUID, list[Handler]]:
    """Return the receivers and actors of each event, which only its earlier deliveries name."""
    addressed: dict[UUID, list[Handler]] = defaultdict(list)
    earlier = deliveries.filter(event_id__in=[event.id for event in events]).order_by("pk")
    for event_id, name in earlier.values_list("event_id", "handler"):
        handler = registry.find(name)
        if handler is not None and handler.kind != "event":
            addressed[event_id].append(handler)
    return addressed
