"""Statistics per handler, merged over processes, hosts and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS
from django.db.models import F, Sum
from django.db.models.functions import Trunc
from django.utils import timezone

from .histogram import percentile_s, slower_than
from .models import HandlerStats, Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerSummary:
    """What one handler did; durations in seconds, percentiles at most 19 % off."""

    handler: str
    dispatched: int
    runs: int
    succeeded: int
    retried: int
    failed: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowHandler:
    """How often one handler was slower than a threshold; durations in seconds."""

    handler: str
    slow: int
    runs: int
    slow_mean_s: float
    max_s: float


class Slot(NamedTuple):
    """What one handler did in a stretch of time."""

    start: datetime
    succeeded: int
    errors: int


def get_stats(
    handler: str | None = None,
    since: timedelta | datetime | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> list[HandlerSummary]:
    """Return what each handler did, by name.

    Args:
        handler: only this one.
        since: only the minutes since a moment, or as long ago as this; all that is kept if not given.

    Raises:
        ValueError: for a naive datetime.
    """
    return [_summary(name, tally) for name, tally in _merged(handler, since, using).items()]


def get_slow_handlers(
    threshold_s: float,
    since: timedelta | datetime | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> list[SlowHandler]:
    """Return the handlers that had runs slower than `threshold_s`, the slowest first.

    Counts and means come from the histograms, whose bounds are a factor of 1.41 apart: a run within the
    threshold's own bucket only counts if it is the maximum.

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
    """Return what each handler did step by step, with the empty steps; whole hours or minutes."""
    now = datetime.now(UTC)
    first = _floor(now, step) - since + step
    unit = "minute" if step < timedelta(hours=1) else "hour"
    rows = (
        _rows(handler, first, using)
        .values("handler", moment=Trunc("bucket", unit, tzinfo=UTC))
        .annotate(ok=Sum("succeeded"), errors=Sum(F("retried") + F("failed")))
        .order_by("handler", "moment")
    )
    series: dict[str, list[Slot]] = {}
    for row in rows:
        slots = series.setdefault(
            row["handler"], [Slot(first + step * i, 0, 0) for i in range(since // step)]
        )
        # The minute of a database whose clock is ahead counts as the last one.
        index = min((row["moment"].astimezone(UTC) - first) // step, len(slots) - 1)
        if index >= 0:
            start, ok, errors = slots[index]
            slots[index] = Slot(start, ok + row["ok"], errors + row["errors"])
    return series


def _rows(handler: str | None, since: timedelta | datetime | None, using: str) -> Any:
    if isinstance(since, datetime) and timezone.is_naive(since):
        raise ValueError(f"since {since!r} is naive; give an aware datetime, or a timedelta before now")
    rows = HandlerStats.objects.using(using).within(since)
    return rows if handler is None else rows.filter(handler=handler)


def _merged(handler: str | None, since: timedelta | datetime | None, using: str) -> dict[str, Tally]:
    merged: dict[str, Tally] = _rows(handler, since, using).merged()
    return merged


def _runs(tally: Tally) -> int:
    return tally.succeeded + tally.retried + tally.failed


def _summary(handler: str, tally: Tally) -> HandlerSummary:
    runs, longest = _runs(tally), tally.duration_max_s
    # A percentile is the middle of its bucket, which may lie above all that was measured.
    p50, p95, p99 = (min(percentile_s(tally.histogram, part), longest) for part in (0.5, 0.95, 0.99))
    return HandlerSummary(
        handler=handler,
        dispatched=tally.dispatched,
        runs=runs,
        succeeded=tally.succeeded,
        retried=tally.retried,
        failed=tally.failed,
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


def _floor(moment: datetime, step: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (moment - epoch) // step * step
