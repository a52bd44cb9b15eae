"""Replays that an operator has requested in the admin: a chunk of events at a time, at a rate."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from outbox.models import Event, OperatorJob
from outbox.models.clock import to_aware
from outbox.registry import registry
from outbox.topics import compile_pattern
from outbox.uuid7 import uuid7_floor

from .replay import OldEvent, replay_events

logger = logging.getLogger(__name__)

# Events that a preview reads, and of these the events that it shows.
PREVIEW_LIMIT = 10_000
SAMPLE = 10

_AGE = ExpressionWrapper(Now() - F("requested_at"), output_field=DurationField())


class ReplayPreview(NamedTuple):
    """The events that a replay would read now.

    Args:
        events: the matching ones among the first `PREVIEW_LIMIT` of the span of time.
        deliveries: the number of new deliveries of these events.
        is_exact: whether the span has no others.
        sample: the first of them.
    """

    events: int
    deliveries: int
    is_exact: bool
    sample: list[OldEvent]


def preview_replay(
    database: str, *, topic: str, key: str = "", since: datetime, until: datetime, handler: str = ""
) -> ReplayPreview:
    """Return the events that a replay with these filters would read now, and write nothing.

    Args:
        topic: a topic or a pattern such as `shop.*`.
        key: the key of the events; all if empty.
        handler: the only handler to deliver to; all subscribed ones if empty.

    Raises:
        InvalidTopic: if the pattern is malformed.
        UnknownHandler: if no handler has the name.
    """
    rows = Event.objects.using(database).filter(pk__gte=uuid7_floor(since), pk__lt=uuid7_floor(until))
    read = [OldEvent(*row) for row in _fields(rows)[:PREVIEW_LIMIT]]
    found = _matching(read, topic, key)
    only = registry.get(handler) if handler else None
    written = replay_events(database, found, only, dry_run=True)
    return ReplayPreview(len(found), written.total(), len(read) < PREVIEW_LIMIT, found[:SAMPLE])


def replay_chunk(database: str, job: OperatorJob, *, size: int) -> int | None:
    """Replay the next events of a locked job, in the transaction of its lock.

    The position of the job is written in the same transaction, so it replays no event twice.

    Args:
        size: events that one chunk reads, whether they match or not.

    Returns:
        How many deliveries were written; None if the rate of the job allows none now.
    """
    jobs = OperatorJob.objects.using(database).filter(pk=job.pk)
    only = registry.find(job.handler) if job.handler else None
    if job.handler and only is None:
        jobs.stop()
        logger.error("replay %d is stopped, since no code declares its handler %r", job.pk, job.handler)
        return 0
    allowed = _allowed(jobs, job, size)
    if not allowed:
        return None
    rows = Event.objects.using(database).filter(pk__lt=_first_id(database, job.until or job.requested_at))
    first = {"pk__gt": job.after_event} if job.after_event else {"pk__gte": _first_id(database, job.since)}
    read = [OldEvent(*row) for row in _fields(rows.filter(**first))[:size]]
    matching = _matching(read, job.topic, job.key)
    part = matching[:allowed]
    is_cut = len(part) < len(matching)
    written = replay_events(database, part, only).total()
    last = part[-1].id if is_cut else read[-1].id if read else None
    jobs.advance_replay(last, written=written, is_last=not is_cut and len(read) < size)
    return written


def _allowed(jobs: Any, job: OperatorJob, size: int) -> int:
    """Return how many deliveries the rate of a job allows now, at least in the first second."""
    if not job.rate:
        return size
    (age,) = jobs.annotate(age=_AGE).values_list("age", flat=True)
    return max(0, min(size, int(job.rate * (age.total_seconds() + 1)) - job.changed))


def _first_id(database: str, moment: datetime | None) -> UUID:
    """Return the first id of a time in the table, or of the beginning."""
    return uuid7_floor(to_aware(moment, database) if moment else datetime(1970, 1, 1, tzinfo=UTC))


def _fields(rows: Any) -> Any:
    return rows.order_by("pk").values_list("pk", "topic", "key")


def _matching(events: list[OldEvent], topic: str, key: str) -> list[OldEvent]:
    # No index contains topics: a chunk is a range of the primary key, and topics are compared here.
    matches = compile_pattern(topic).fullmatch
    return [event for event in events if matches(event.topic) and key in ("", event.key)]
