"""Statistics per handler, merged over processes, hosts and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS
from django.db.models import F, Sum

from outbox.models import Delivery, HandlerStats, Tally
from outbox.models.clock import EpochStep, from_project
from outbox.models.histogram import bounded_percentile_s, slower_than


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerSummary:
    """Counts and durations of one handler; the error of a percentile is at most 19 %.

    Runs are not deliveries: a duplicate runs again, and so does a delivery that an operator retries.
    """

    handler: str
    dispatched: int
    runs: int
    succeeded_runs: int
    retried_runs: int
    failed_runs: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowHandler:
    """Runs of one handler that were slower than a threshold."""

    handler: str
    slow: int
    runs: int
    slow_mean_s: float
    max_s: float


class Slot(NamedTuple):
    """Runs of one handler in one step of time."""

    start: datetime
    succeeded: int
    errors: int


def get_stats(
    handler: str | None = None,
    since: timedelta | datetime | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> list[HandlerSummary]:
    """Return the counts and durations of each handler, by name.

    Args:
        handler: the name of the only handler; all handlers if not given.
        since: the first minute, or its age; all statistics if not given.
        using: the database alias.

    Raises:
        ValueError: for a naive datetime.
    """
    return [_summary(name, tally) for name, tally in _merged(handler, since, using).items()]


def summary_without_runs(handler: str) -> HandlerSummary:
    """Return the summary of a handler that did not run, with zeros."""
    return _summary(handler, Tally())


def get_slow_handlers(
    threshold_s: float,
    since: timedelta | datetime | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> list[SlowHandler]:
    """Return the handlers that had runs slower than `threshold_s`, the slowest first.

    Counts and means come from the histograms, whose bounds are a factor of 1.41 apart. A run in the bucket
    of the threshold counts only if it is the maximum.

    Raises:
        ValueError: for a naive datetime.
    """
    merged = _merged(None, since, using)
    found = [
        _slow(name, tally, threshold_s)
        for name, tally in merged.items()
        if tally.duration_max_s > threshold_s
    ]
    return sorted(found, key=lambda slow: slow.max_s, reverse=True)


def get_series(
    since: timedelta, step: timedelta, handler: str | None = None, using: str = DEFAULT_DB_ALIAS
) -> dict[str, list[Slot]]:
    """Return the runs of each handler by step of time, with the empty steps.

    Args:
        since: the length of the series.
        step: the length of a step, in whole minutes or hours.
        handler: the name of the only handler; all handlers if not given.
        using: the database alias.
    """
    now = datetime.now(UTC)
    first = floor(now, step) - since + step
    step_s = int(step.total_seconds())
    rows = (
        _rows(handler, first, using)
        .values("handler", number=EpochStep("bucket", step_s=step_s))
        .annotate(ok=Sum("succeeded"), errors=Sum(F("retried") + F("failed")))
        .order_by("handler", "number")
    )
    first_number = int(first.timestamp()) // step_s
    series: dict[str, list[Slot]] = {}
    for row in rows:
        slots = series.setdefault(
            row["handler"], [Slot(first + step * i, 0, 0) for i in range(since // step)]
        )
        # The minute of a database whose clock is ahead counts as the last one.
        index = min(row["number"] - first_number, len(slots) - 1)
        if index >= 0:
            start, ok, errors = slots[index]
            slots[index] = Slot(start, ok + row["ok"], errors + row["errors"])
    return series


def count_failed_deliveries(handler: str, *, limit: int, using: str = DEFAULT_DB_ALIAS) -> int:
    """Return how many deliveries of a handler are failed now, counted up to `limit`."""
    failed = Delivery.objects.using(using).failed().filter(handler=handler)
    return int(failed.order_by().values("pk")[:limit].count())


def _rows(handler: str | None, since: timedelta | datetime | None, using: str) -> Any:
    if isinstance(since, datetime):
        try:
            since = from_project(since)
        except ValueError:
            remedy = "give an aware datetime, or a timedelta before now"
            raise ValueError(f"since {since!r} is naive; {remedy}") from None
    rows = HandlerStats.objects.using(using).within(since)
    return rows if handler is None else rows.filter(handler=handler)


def _merged(handler: str | None, since: timedelta | datetime | None, using: str) -> dict[str, Tally]:
    merged: dict[str, Tally] = _rows(handler, since, using).merged()
    return merged


def _runs(tally: Tally) -> int:
    return tally.succeeded + tally.retried + tally.failed


def _summary(handler: str, tally: Tally) -> HandlerSummary:
    runs, longest = _runs(tally), tally.duration_max_s
    p50, p95, p99 = (
        bounded_percentile_s(tally.histogram, part, total_s=tally.duration_total_s, max_s=longest)
        for part in (0.5, 0.95, 0.99)
    )
    return HandlerSummary(
        handler=handler,
        dispatched=tally.dispatched,
        runs=runs,
        succeeded_runs=tally.succeeded,
        retried_runs=tally.retried,
        failed_runs=tally.failed,
        mean_s=tally.duration_total_s / runs if runs else 0.0,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        max_s=longest,
    )


def _slow(handler: str, tally: Tally, threshold_s: float) -> SlowHandler:
    slow, mean_s = slower_than(tally.histogram, threshold_s)
    longest = tally.duration_max_s
    return SlowHandler(
        handler=handler,
        slow=max(slow, 1),
        runs=_runs(tally),
        slow_mean_s=min(mean_s, longest) if slow else longest,
        max_s=longest,
    )


def floor(moment: datetime, step: timedelta) -> datetime:
    """Return the start of the step of time that holds a moment."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (moment - epoch) // step * step
