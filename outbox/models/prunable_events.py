"""The events that may be deleted, a chunk of the primary key at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Exists, OuterRef
from django.db.models.signals import post_delete, pre_delete

from .delivery import Delivery
from .event import Event
from .row_locks import brief_transaction, unlocked
from .task_attempt import TaskAttempt

# The ids stay on the server, so that the relay's other thread keeps the interpreter. Events that stay are not
# locked, as a lock is a write.
_LOCK = """
WITH chunk AS MATERIALIZED (
    SELECT id FROM outbox_event WHERE id > %s AND id < %s ORDER BY id LIMIT %s
), finished AS (
    SELECT e.id FROM outbox_event e
    WHERE e.id = ANY(ARRAY(SELECT id FROM chunk)) AND NOT EXISTS (
        SELECT FROM outbox_delivery d WHERE d.event_id = e.id AND (
            d.state IN ('pending', 'dispatched')
            OR (d.state = 'failed' AND d.finished_at > statement_timestamp() - %s)
        )
    )
    FOR UPDATE OF e SKIP LOCKED
)
SELECT (SELECT count(*) FROM chunk), (SELECT id FROM chunk ORDER BY id DESC LIMIT 1),
       ARRAY(SELECT id FROM finished)::text
"""

# An operator may have retried a failed delivery, or may hold its lock just now. Its event then stays.
_DELETE_DELIVERIES = """
DELETE FROM outbox_delivery WHERE id = ANY(ARRAY(
    SELECT id FROM outbox_delivery
    WHERE event_id = ANY(%s::uuid[]) AND (
        state IN ('succeeded', 'discarded')
        OR (state = 'failed' AND finished_at <= statement_timestamp() - %s)
    )
    FOR UPDATE SKIP LOCKED
))
"""

# With the attempts of tasks, in one round trip.
_DELETE_EVENTS = """
WITH finished AS MATERIALIZED (
    SELECT id FROM outbox_event e
    WHERE e.id = ANY(%s::uuid[]) AND NOT EXISTS (SELECT FROM outbox_delivery d WHERE d.event_id = e.id)
), attempts AS (
    DELETE FROM outbox_taskattempt WHERE event_id = ANY(ARRAY(SELECT id FROM finished))
)
DELETE FROM outbox_event WHERE id = ANY(ARRAY(SELECT id FROM finished))
"""

_BEFORE_ALL = UUID(int=0)


def prune_chunk(
    database: str, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
) -> tuple[UUID | None, int]:
    """Delete the oldest finished events, and their deliveries, except locked ones.

    An event stays while one of its deliveries is unfinished, or failed less than `failed_retention` ago.

    Args:
        database: the database alias.
        after: the last id of the chunk before; None to start from the oldest event.
        before: the first id to keep, so that a chunk is a range of the primary key.
        failed_retention: how long events with a failed delivery are kept.
        limit: events to read at most.

    Returns:
        The last id that was read (None if the range is exhausted), and how many events were deleted.
    """
    is_plain = connections[database].vendor == "postgresql" and _has_no_dependents()
    prune = _prune if is_plain else _prune_portably
    with brief_transaction(database):
        return prune(database, after=after, before=before, failed_retention=failed_retention, limit=limit)


def prunable_chunk(
    database: str, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
) -> tuple[UUID | None, list[UUID]]:
    """Return what `prune_chunk` would delete; arguments and shape as there, with ids for the count."""
    candidates = Event.objects.using(database).filter(pk__lt=before).order_by("pk")
    if after is not None:
        candidates = candidates.filter(pk__gt=after)
    ids = list(candidates.values_list("pk", flat=True)[:limit])
    deliveries = Delivery.objects.using(database).filter(event_id__in=ids)
    kept = set(deliveries.still_needed(failed_retention).values_list("event_id", flat=True))
    return (ids[-1] if len(ids) == limit else None), [pk for pk in ids if pk not in kept]


def _has_no_dependents() -> bool:
    """Return whether no foreign key or receiver of the project depends on Django deleting the rows."""
    related = [*Event._meta.related_objects, *Delivery._meta.related_objects]
    deletions = [(signal, model) for signal in (pre_delete, post_delete) for model in (Event, Delivery)]
    return len(related) == 1 and not any(signal.has_listeners(model) for signal, model in deletions)


def _prune(
    database: str, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
) -> tuple[UUID | None, int]:
    cursor: Any
    with connections[database].cursor() as cursor:
        cursor.execute(_LOCK, [after or _BEFORE_ALL, before, limit, failed_retention])
        read, last, ids = cursor.fetchone()
        # A statement for each step, as only a later one sees the deliveries of a replay that has committed.
        cursor.execute(_DELETE_DELIVERIES, [ids, failed_retention])
        cursor.execute(_DELETE_EVENTS, [ids])
        return (last if read == limit else None), cursor.rowcount


def _prune_portably(
    database: str, *, after: UUID | None, before: UUID, failed_retention: timedelta, limit: int
) -> tuple[UUID | None, int]:
    events = Event.objects.using(database)
    deliveries = Delivery.objects.using(database)
    last, ids = prunable_chunk(
        database, after=after, before=before, failed_retention=failed_retention, limit=limit
    )
    # A replay locks the events for which it writes deliveries: these stay.
    ids = list(unlocked(events.filter(pk__in=ids)).values_list("pk", flat=True))
    # The states are read again: an operator may retry a failed delivery at this moment.
    prunable = deliveries.filter(event_id__in=ids).prunable(failed_retention)
    deliveries.filter(pk__in=list(unlocked(prunable).values_list("pk", flat=True))).delete()
    remaining: Any = Exists(deliveries.filter(event_id=OuterRef("pk")))
    # Deleting reads the rows first, and payloads are the larger part of them.
    deleted, _by_model = events.filter(~remaining, pk__in=ids).only("pk").delete()
    kept: Any = Exists(events.filter(pk=OuterRef("event_id")))
    TaskAttempt.objects.using(database).filter(~kept, event_id__in=ids).delete()
    return last, deleted
