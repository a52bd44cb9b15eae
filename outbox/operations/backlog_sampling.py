"""Samples of the backlog, one per minute, for the charts of the overview."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from outbox.models import BacklogSample, Event
from outbox.uuid7 import uuid7_floor

from .health_figures import count, measure, queues_of

_MINUTE = timedelta(minutes=1)


def sample_backlog(database: str, *, now: datetime | None = None) -> bool:
    """Write the sample of the last full minute, and return whether it was missing.

    Events of transactions that are still open are not counted.

    Args:
        now: the present by the clock of publishers; this host's clock if not given.
    """
    samples = BacklogSample.objects.using(database)
    if not samples.lacks_last_minute():
        return False
    figures = measure(database, *queues_of(database, ()))
    samples.add(
        published=_published(database, now or datetime.now(UTC)),
        due=figures.due,
        waiting=figures.waiting,
        unconfirmed=figures.unconfirmed,
        failed=figures.failed,
        oldest_s=figures.lag_s,
    )
    return True


def _published(database: str, now: datetime) -> int:
    # The ids of events begin with the time of their publisher's clock.
    end = now.replace(second=0, microsecond=0)
    within = {"pk__gte": uuid7_floor(end - _MINUTE), "pk__lt": uuid7_floor(end)}
    return count(Event.objects.using(database).filter(**within))
