"""Counts of runs that only grow, for monitoring systems that compute rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from outbox.models import HandlerStats, Tally
from outbox.registry import registry

# A process may write the counts of a minute this much later.
LATEST = timedelta(minutes=15)


class RunCounts:
    """The counts and durations of one database's handlers since the first update, over all processes.

    The statistics have a row for each handler and minute, and old rows are pruned, so their sums may shrink.
    Each update therefore adds the growth of the rows that may have changed since the update before.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, database: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._totals: dict[str, Tally] = {}
        self._rows: dict[tuple[str, datetime], Tally] = {}
        self._updated_at: float | None = None

    def update(self) -> Mapping[str, Tally]:
        """Read the latest rows; return the counts by handler, also of handlers without a run."""
        began = self._clock()
        is_first = self._updated_at is None
        since = LATEST if self._updated_at is None else LATEST + timedelta(seconds=began - self._updated_at)
        found = HandlerStats.objects.using(self._database).within(since).filter(handler__in=registry.handlers)
        rows = {(row.handler, row.bucket): row.tally() for row in found}
        totals = {name: self._totals.get(name, Tally()) for name in registry.handlers}
        if not is_first:
            for key, tally in rows.items():
                totals[key[0]].add(_growth(tally, self._rows.get(key, Tally())))
        self._totals, self._rows, self._updated_at = totals, rows, began
        return totals


def _growth(now: Tally, before: Tally) -> Tally:
    if sum(now.histogram) < sum(before.histogram) or now.dispatched < before.dispatched:
        # Somebody has emptied the table since.
        before = Tally()
    counts = zip(now.histogram, before.histogram, strict=True)
    return Tally(
        dispatched=now.dispatched - before.dispatched,
        succeeded=now.succeeded - before.succeeded,
        retried=now.retried - before.retried,
        failed=now.failed - before.failed,
        duration_total_s=now.duration_total_s - before.duration_total_s,
        duration_max_s=now.duration_max_s,
        histogram=[later - earlier for later, earlier in counts],
    )
