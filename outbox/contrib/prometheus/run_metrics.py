"""The counters and the histogram of runs, by handler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from outbox.models import Tally
from outbox.models.histogram import BOUNDS_S

# Every second bound, so that each is twice the bound before: half as many time series.
STEP = 2


def run_metrics(database: str, counts: Mapping[str, Tally]) -> Iterator[Metric]:
    """Yield counters that begin with the first scrape of this process, over all workers."""
    labels = ["database", "handler"]
    dispatched = CounterMetricFamily(
        "outbox_dispatched_deliveries", "Dispatched deliveries, by handler", labels=labels
    )
    runs = CounterMetricFamily("outbox_runs", "Runs of handlers, by result", labels=[*labels, "result"])
    durations = HistogramMetricFamily(
        "outbox_run_duration_seconds", "Durations of the runs of handlers", labels=labels
    )
    for handler, tally in counts.items():
        dispatched.add_metric([database, handler], tally.dispatched)
        for result in ("succeeded", "retried", "failed"):
            runs.add_metric([database, handler, result], getattr(tally, result))
        durations.add_metric([database, handler], buckets(tally.histogram), sum_value=tally.duration_total_s)
    yield from (dispatched, runs, durations)


def buckets(histogram: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative buckets, each with its upper bound in seconds as text."""
    cumulative = list(accumulate(histogram))
    bounds = range(0, len(BOUNDS_S), STEP)
    return [
        *((f"{BOUNDS_S[index]:.6g}", float(cumulative[index])) for index in bounds),
        ("+Inf", float(cumulative[-1])),
    ]
