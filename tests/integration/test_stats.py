"""Statistics per handler: merged over minutes, with percentiles and slow runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from outbox.models import HandlerStats, Tally
from outbox.models.histogram import BOUNDS_S, BUCKETS
from outbox.operations.pruning import prune
from outbox.operations.stats import count_failed_deliveries, get_series, get_slow_handlers, get_stats
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db


def tally_of(*durations_s: float, result: str = "succeeded", dispatched: int = 0) -> Tally:
    tally = Tally(dispatched=dispatched)
    for duration_s in durations_s:
        tally.count(result, duration_s)
    return tally


def record(handler: str, tally: Tally, *, ago: timedelta = timedelta()) -> None:
    """Write a tally as if it had been flushed `ago`; call it for the oldest tally first."""
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
    record("mail", tally_of(0.5, result="retried"))
    summary = only(get_stats())
    assert (summary.handler, summary.dispatched, summary.runs) == ("mail", 3, 4)
    assert (summary.succeeded_runs, summary.retried_runs, summary.failed_runs) == (3, 1, 0)
    assert summary.mean_s == pytest.approx(1.1 / 4)
    assert summary.max_s == 0.5


def test_one_pass_forgets_a_bounded_number_of_minutes() -> None:
    for minutes in range(5):
        record("mail", tally_of(0.1), ago=timedelta(days=40, minutes=minutes))
    assert HandlerStats.objects.forget(timedelta(days=30), limit=2) == 2
    assert HandlerStats.objects.count() == 3
    prune("default")
    assert not HandlerStats.objects.exists()


def test_percentiles_are_within_a_fifth_of_the_exact_values() -> None:
    record("mail", tally_of(*(number / 1000 for number in range(1, 1001))))
    summary = only(get_stats())
    for value, truth in ((summary.p50_s, 0.5), (summary.p95_s, 0.95), (summary.p99_s, 0.99)):
        assert value == pytest.approx(truth, rel=0.2)


def test_no_percentile_exceeds_the_maximum() -> None:
    record("mail", tally_of(0.0075))
    summary = only(get_stats())
    assert summary.p50_s == summary.p95_s == summary.p99_s == summary.max_s == 0.0075


def test_no_percentile_of_equal_runs_is_below_their_mean() -> None:
    # The upper end of a bucket: its middle is a fifth less.
    record("mail", tally_of(*[BOUNDS_S[20]] * 300))
    summary = only(get_stats())
    assert summary.p50_s == summary.p95_s == summary.p99_s == summary.max_s == pytest.approx(summary.mean_s)


def test_runs_beyond_the_last_bound_have_their_own_percentiles() -> None:
    record("backup", tally_of(7200.0, 7200.0, 10_000.0))
    summary = only(get_stats())
    assert summary.mean_s <= summary.p95_s <= summary.p99_s <= summary.max_s == 10_000.0
    assert summary.p50_s == pytest.approx(7200.0)


def test_failed_runs_and_failed_deliveries_are_counted_apart() -> None:
    record("tests.mail", tally_of(0.1, 0.1, result="failed"))
    make_delivery(state="failed")
    assert only(get_stats()).failed_runs == 2
    assert count_failed_deliveries("tests.mail", limit=10) == 1
    make_delivery(state="failed")
    assert count_failed_deliveries("tests.mail", limit=1) == 1


def test_a_handler_that_was_dispatched_but_never_ran_has_no_durations() -> None:
    record("mail", tally_of(dispatched=7))
    summary = only(get_stats())
    assert (summary.dispatched, summary.runs, summary.mean_s, summary.p99_s) == (7, 0, 0.0, 0.0)


def test_a_row_without_a_histogram_counts() -> None:
    HandlerStats.objects.create(handler="mail", bucket=timezone.now(), succeeded=2, duration_max_s=0.5)
    summary = only(get_stats())
    assert (summary.succeeded_runs, summary.p50_s) == (2, 0.0)


def test_since_leaves_out_older_minutes() -> None:
    record("mail", tally_of(0.1), ago=timedelta(hours=2))
    record("mail", tally_of(0.2))
    assert only(get_stats(since=timedelta(hours=1))).runs == 1
    assert only(get_stats(since=timezone.now() - timedelta(hours=3))).runs == 2
    assert only(get_stats()).runs == 2


def test_a_naive_since_is_refused(settings: Any) -> None:
    settings.USE_TZ = True
    with pytest.raises(ValueError, match="is naive; give an aware datetime"):
        get_stats(since=datetime(2026, 1, 1))


def test_statistics_of_one_handler_can_be_read() -> None:
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


def test_slow_handlers_have_the_number_and_the_mean_of_their_slow_runs() -> None:
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


def test_a_series_has_every_step_until_now() -> None:
    record("mail", tally_of(0.1, result="failed"), ago=timedelta(minutes=30))
    record("mail", tally_of(0.1, 0.1))
    slots = get_series(timedelta(hours=1), timedelta(minutes=1))["mail"]
    assert len(slots) == 60
    assert sum(slot.succeeded for slot in slots[-2:]) == 2
    assert sum(slot.errors for slot in slots) == 1
    assert timedelta() <= datetime.now(UTC) - slots[-1].start < timedelta(minutes=2)


def test_pruning_deletes_statistics_older_than_a_month() -> None:
    record("mail", tally_of(0.1), ago=timedelta(days=31))
    record("mail", tally_of(0.1), ago=timedelta(days=29))
    make_event()
    prune("default")
    assert only(get_stats()).runs == 1
