"""Deleting events and statistics past their retention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import BacklogSample, Event, HandlerStats, OperatorJob
from outbox.models.clock import to_aware
from outbox.models.prunable_events import prunable_chunk, prune_chunk
from outbox.uuid7 import uuid7_floor

from .chunks import Done, ignore

PRUNE_CHUNK = 1000
# A month is at most a few ten thousand rows per handler.
STATS_CHUNK = 5000
STATS_RETENTION = timedelta(days=30)


def prune(database: str, *, max_chunks: int | None = None, done: Done = ignore) -> int:
    """Delete events past their retention, oldest first, in chunks of one short transaction each.

    Statistics, samples of the backlog and finished operator jobs that are older than 30 days are deleted too.

    Args:
        database: the database alias.
        max_chunks: the number of chunks to read at most; all if not given.
        done: called with the number of events that each chunk has deleted.

    Returns:
        The number of deleted events.
    """
    return PruningPass(database).delete_chunks(max_chunks, done=done)


class PruningPass:
    """A pass over the events past their retention, in several calls.

    A pass reads an event that a recent failure keeps only once. Many such events therefore do not keep the
    pass from the events behind them.

    Args:
        database: the database alias.
        chunk_size: events of one chunk.
    """

    def __init__(self, database: str, *, chunk_size: int = PRUNE_CHUNK) -> None:
        self._database = database
        self._chunk_size = chunk_size
        self._after: UUID | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the pass has read all events past their retention, so that the next call begins another."""
        return self._after is None

    def delete_chunks(self, max_chunks: int | None = None, *, done: Done = ignore) -> int:
        """Read the next chunks, at most `max_chunks`; return the number of deleted events.

        Args:
            done: called with the number of events that each chunk has deleted.
        """
        if self.is_complete:
            self._forget_stats(all_rows=max_chunks is None)
        start, self._after = self._after, None
        chunks = _each_chunk(
            self._database, prune_chunk, after=start, limit=self._chunk_size, at_most=max_chunks
        )
        deleted = 0
        for self._after, count in chunks:
            deleted += count
            done(count)
        return deleted

    def _forget_stats(self, *, all_rows: bool) -> None:
        for model in (HandlerStats, BacklogSample, OperatorJob):
            rows = model.objects.using(self._database)
            while rows.forget(STATS_RETENTION, limit=STATS_CHUNK) == STATS_CHUNK and all_rows:
                continue


def count_prunable(database: str, *, at_most: int | None = None) -> int:
    """Return the number of events that `prune` would delete; stop counting beyond `at_most`."""
    count = 0
    for _after, ids in _each_chunk(database, prunable_chunk):
        count += len(ids)
        if at_most is not None and count > at_most:
            break
    return count


def _each_chunk(
    database: str,
    chunk: Callable[..., tuple[UUID | None, Any]],
    *,
    after: UUID | None = None,
    limit: int = PRUNE_CHUNK,
    at_most: int | None = None,
) -> Iterator[tuple[UUID | None, Any]]:
    settings = get_settings()
    now = _now_if_events(database, after)
    done = 0
    while now is not None and (at_most is None or done < at_most):
        after, result = chunk(
            database,
            after=after,
            before=uuid7_floor(now - settings.retention),
            failed_retention=settings.failed_retention,
            limit=limit,
        )
        yield after, result
        done += 1
        if after is None:
            return


def _now_if_events(database: str, after: UUID | None) -> datetime | None:
    """Return the database's time, None if it has no event after an id: before it are dead rows."""
    events = Event.objects.using(database).order_by("pk")
    if after is not None:
        events = events.filter(pk__gt=after)
    now = ExpressionWrapper(Now(), output_field=DateTimeField())
    found: datetime | None = events.annotate(now=now).values_list("now", flat=True).first()
    return None if found is None else to_aware(found, database)
