"""Deleting what is past its retention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now

from .conf import get_settings
from .models import Event, HandlerStats
from .uuid7 import uuid7_floor

PRUNE_CHUNK = 1000
# Far longer than anybody looks back, and a few ten thousand rows per handler at most.
STATS_RETENTION = timedelta(days=30)


def prune(database: str, *, max_chunks: int | None = None) -> int:
    """Delete events past their retention, oldest first, in chunks of one short transaction each.

    Statistics of more than 30 days ago go too.

    Returns:
        How many events were deleted.
    """
    return Pruning(database).go_on(max_chunks)


class Pruning:
    """A pass over the events past their retention, which may be made in several goes.

    Events that are kept, since a delivery of theirs has failed not long ago, are passed over once a pass, so
    that however many they are, those behind them are reached.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._after: UUID | None = None

    def go_on(self, max_chunks: int | None = None) -> int:
        """Look at the next chunks, at most `max_chunks`; return how many events were deleted."""
        HandlerStats.objects.using(self._database).forget(STATS_RETENTION)
        deleted = 0
        chunk = Event.objects.using(self._database).prune_chunk
        for after, count in _each_chunk(self._database, chunk, self._after, max_chunks):
            self._after = after
            deleted += count
        return deleted


def count_prunable(database: str) -> int:
    """Return how many events `prune` would delete."""
    chunks = _each_chunk(database, Event.objects.using(database).prunable_chunk)
    return sum(len(ids) for _after, ids in chunks)


def _each_chunk(
    database: str,
    chunk: Callable[..., tuple[UUID | None, Any]],
    after: UUID | None = None,
    at_most: int | None = None,
) -> Iterator[tuple[UUID | None, Any]]:
    settings = get_settings()
    now = _now_if_any(database)
    done = 0
    while now is not None and (at_most is None or done < at_most):
        after, result = chunk(
            after=after,
            before=uuid7_floor(now - settings.retention),
            failed_retention=settings.failed_retention,
            limit=PRUNE_CHUNK,
        )
        yield after, result
        done += 1
        if after is None:
            return


def _now_if_any(database: str) -> datetime | None:
    """Return the database's time, None if there is no event."""
    now = ExpressionWrapper(Now(), output_field=DateTimeField())
    times = Event.objects.using(database).order_by("pk").annotate(now=now).values_list("now", flat=True)
    found: datetime | None = times.first()
    return found
