"""The figures of the whole outbox by step of time, for charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.models import F, Max, Sum

from outbox.models import BacklogSample, HandlerStats
from outbox.models.clock import EpochStep
from outbox.registry import registry

from .stats import floor

_BACKLOG = F("due") + F("waiting") + F("unconfirmed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineStep:
    """The figures of one step of time; None without a sample of a relay.

    Args:
        start: an aware time.
        published: events.
        dispatched: messages to the broker.
        succeeded: runs, as are `retried` and `failed`.
        backlog: the largest number of due, waiting and unconfirmed deliveries.
        oldest_s: the largest age of a delivery that was due and had not run, in seconds.
        is_partial: whether the step has not ended yet.
    """

    start: datetime
    published: int | None = None
    dispatched: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    backlog: int | None = None
    oldest_s: float | None = None
    is_partial: bool = False


def get_timeline(since: timedelta, step: timedelta, using: str = DEFAULT_DB_ALIAS) -> list[TimelineStep]:
    """Return the figures of each step, with the empty steps; the last step is partial.

    Args:
        since: the length of the timeline.
        step: the length of a step, in whole minutes or hours.
        using: the database alias.
    """
    first = floor(datetime.now(UTC), step) - since + step
    steps = [TimelineStep(start=first + step * index) for index in range(since // step)]
    steps[-1] = replace(steps[-1], is_partial=True)
    step_s = int(step.total_seconds())
    for row in [*_runs(since, step_s, using), *_samples(since, step_s, using)]:
        # The minute of a database whose clock is ahead counts as the last one.
        index = min(row["number"] - int(first.timestamp()) // step_s, len(steps) - 1)
        if index >= 0:
            steps[index] = replace(steps[index], **_added(steps[index], row))
    return steps


def _runs(since: timedelta, step_s: int, using: str) -> Any:
    rows = HandlerStats.objects.using(using).within(since).filter(handler__in=list(registry.handlers))
    names = ("dispatched", "succeeded", "retried", "failed")
    sums = {f"sum_{name}": Sum(name) for name in names}
    found: Any = rows.values(number=EpochStep("bucket", step_s=step_s)).annotate(**sums).order_by()
    return ({"number": row["number"]} | {name: row[f"sum_{name}"] for name in names} for row in found)


def _samples(since: timedelta, step_s: int, using: str) -> Any:
    rows = BacklogSample.objects.using(using).within(since)
    found: Any = rows.values(number=EpochStep("minute", step_s=step_s)).order_by()
    return found.annotate(
        sum_published=Sum("published"), backlog=Max(_BACKLOG), max_oldest_s=Max("oldest_s")
    ).values("number", "backlog", published=F("sum_published"), oldest_s=F("max_oldest_s"))


def _added(step: TimelineStep, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed fields of a step; two rows have the same step if a clock is ahead."""
    added = {}
    for name, value in row.items():
        before = getattr(step, name, None)
        if name in ("backlog", "oldest_s"):
            added[name] = max(before or 0, value)
        elif name != "number":
            added[name] = (before or 0) + value
    return added
