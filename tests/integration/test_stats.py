"""Statistics per handler: merged over minutes, with percentiles and slow runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from outbox.histogram import BUCKETS
from outbox.models import HandlerStats, Tally
from outbox.pruning import prune
from outbox.stats import get_series, get_slow_handlers, get_stats
from tests.factories import make_event

pytestmark = pytest.mark.django_db


def tally_of(*durations_s: float, verdict: str = "succeeded", dispatched: int = 0) -> Tally:
    tally = Tally(dispatched=dispatched)
    for duration_s in durations_s:
        tally.count(verdict, duration_s)
    return tally


def record(handler: str, tally: Tally, *, ago: timedelta = timedelta()) -> None:
    """Write a tally as if it had been flushed `ago`; the oldest first."""
    HandlerStats.objects.add({handler: tally})
    if ago:
        newest = HandlerStats.objects.filter(handler=handler).latest("bucket")
        HandlerStats.objects.filter(pk=newest.pk).update(bucket=newest.bucket - ago)


def only(found: list[Any]) -> Any:
    (one,) = found
    return one


def test_minutes_and_flushes_of_one_handler_are_merged() -> None:
    record("mail", tally_of(0.1, 0.2, dispatched=3), ago=timedelta(minutes=5))
    record("mail", tally_of(0.3))
    record("mail", tally_of(0.5, verdict="retried"))
    summary = only(get_stats())
    assert (summary.handler, summary.dispatched, summary.runs) == ("mail", 3, 4)
    assert (summary.succeeded, summary.retried, summary.failed) == (3, 1, 0)
    assert summary.mean_s == pytest.approx(1.1 / 4)
    assert summary.max_s == 0.5


def test_percentiles_are_within_a_fifth_of_the_truth() -> None:
    record("mail", tally_of(*(number / 1000 for number in range(1, 1001))))
    summary = only(get_stats())
    for value, truth in ((summary.p50_s, 0.5), (summary.p95_s, 0.95), (summary.p99_s, 0.99)):
        assert value == pytest.approx(truth, rel=0.2)


def test_no_percentile_exceeds_the_maximum() -> None:
    record("mail", tally_of(0.0075))
    summary = only(get_stats())
    assert summary.p50_s == summary.p95_s == summary.p99_s == summary.max_s == 0.0075


def test_a_handler_that_was_dispatched_but_never_ran_has_no_durations() -> None:
    record("mail", tally_of(dispatched=7))
    summary = only(get_stats())
    assert (summary.dispatched, summary.runs, summary.mean_s, summary.p99_s) == (7, 0, 0.0, 0.0)


def test_a_row_without_a_histogram_counts() -> None:
    HandlerStats.objects.create(handler="mail", bucket=timezone.now(), succeeded=2, duration_max_s=0.5)
    summary = only(get_stats())
    assert (summary.succeeded, summary.p50_s) == (2, 0.0)


def test_since_leaves_out_older_minutes() -> None:
    record("mail", tally_of(0.1), ago=timedelta(hours=2))
    record("mail", tally_of(0.2))
    assert only(get_stats(since=timedelta(hours=1))).runs == 1
    assert only(get_stats(since=timezone.now() - timedelta(hours=3))).runs == 2
    assert only(get_stats()).runs == 2


def test_a_naive_since_is_refused() -> None:
    with pytest.raises(ValueError, match="is naive; give an aware datetime"):
        get_stats(since=datetime(2026, 1, 1))


def test_one_handler_may_be_asked_for() -> None:
    record("mail", tally_of(0.1))
    record("stock", tally_of(0.1))
    assert [summary.handler for summary in get_stats()] == ["mail", "stock"]
    assert only(get_stats("stock")).handler == "stock"
    assert get_stats("nobody") == []


def test_any_number_of_minutes_takes_one_query(django_assert_num_queries: Any) -> None:
    histogram = [1] * BUCKETS
    start = timezone.now() - timedelta(minutes=3000)
    HandlerStats.objects.bulk_create(
        HandlerStats(handler="mail", bucket=start + timedelta(minutes=n), succeeded=58, histogram=histogram)
        for n in range(2000)
    )
    with django_assert_num_queries(1):
        assert only(get_stats()).runs == 58 * 2000


def test_slow_handlers_say_how_many_how_slow_and_of_how_many() -> None:
    record("fast", tally_of(0.001, 0.002))
    record("mixed", tally_of(*[0.01] * 8, 0.4, 0.6))
    record("slow", tally_of(2.0))
    slowest, mixed = get_slow_handlers(0.1)
    assert (slowest.handler, slowest.slow, slowest.runs, slowest.max_s) == ("slow", 1, 1, 2.0)
    assert (mixed.handler, mixed.slow, mixed.runs, mixed.max_s) == ("mixed", 2, 10, 0.6)
    assert mixed.slow_mean_s == pytest.approx(0.5, rel=0.2)


def test_a_maximum_just_over_the_threshold_is_slow() -> None:
    record("mail", tally_of(0.1001))
    assert only(get_slow_handlers(0.1)).slow == 1
    assert get_slow_handlers(0.1002) == []


def test_a_series_has_every_step_and_the_last_one_is_now() -> None:
    record("mail", tally_of(0.1, verdict="failed"), ago=timedelta(minutes=30))
    record("mail", tally_of(0.1, 0.1))
    slots = get_series(timedelta(hours=1), timedelta(minutes=1))["mail"]
    assert len(slots) == 60
    assert sum(slot.succeeded for slot in slots[-2:]) == 2
    assert sum(slot.errors for slot in slots) == 1
    assert timedelta() <= datetime.now(UTC) - slots[-1].start < timedelta(minutes=2)


def test_pruning_forgets_statistics_of_more_than_a_month_ago() -> None:
    record("mail", tally_of(0.1), ago=timedelta(days=31))
    record("mail", tally_of(0.1), ago=timedelta(days=29))
    make_event()
    prune("default")
    assert only(get_stats()).runs == 1
