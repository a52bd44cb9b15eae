"""The buckets of durations."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.models.histogram import (
    BOUNDS_S,
    BUCKETS,
    bounded_percentile_s,
    bucket_of,
    middle_s,
    percentile_s,
    slower_than,
)

DURATIONS = st.floats(min_value=1e-5, max_value=BOUNDS_S[-1])


def histogram_of(*durations_s: float) -> list[int]:
    """Return the histogram of durations."""
    counts = [0] * BUCKETS
    for duration_s in durations_s:
        counts[bucket_of(duration_s)] += 1
    return counts


def test_there_is_one_bucket_more_than_bounds() -> None:
    assert len(BOUNDS_S) == BUCKETS - 1
    assert all(b == pytest.approx(a * 2**0.5) for a, b in pairwise(BOUNDS_S))


@pytest.mark.parametrize("duration_s", [-1.0, 0.0, 1e-9, 1e-5])
def test_the_first_bucket_holds_the_shortest_durations(duration_s: float) -> None:
    assert bucket_of(duration_s) == 0


@pytest.mark.parametrize("duration_s", [3600.0, 1e6, 1e300])
def test_the_last_bucket_holds_all_longer_durations(duration_s: float) -> None:
    assert bucket_of(duration_s) == BUCKETS - 1


@given(DURATIONS)
def test_a_duration_lies_within_the_bounds_of_its_bucket(duration_s: float) -> None:
    index = bucket_of(duration_s)
    # Because of rounding in the logarithm, a duration close to a bound may be in either bucket.
    assert duration_s <= BOUNDS_S[index] * (1 + 1e-9)
    assert index == 0 or duration_s >= BOUNDS_S[index - 1] * (1 - 1e-9)


@given(DURATIONS)
def test_the_middle_of_a_bucket_is_at_most_19_percent_off(duration_s: float) -> None:
    index = bucket_of(duration_s)
    if index:
        assert abs(middle_s(index) - duration_s) <= duration_s * 0.19


@given(DURATIONS, DURATIONS)
def test_a_longer_duration_never_lies_in_an_earlier_bucket(one_s: float, other_s: float) -> None:
    shorter, longer = sorted((one_s, other_s))
    assert bucket_of(shorter) <= bucket_of(longer)


def test_a_percentile_of_no_runs_is_zero() -> None:
    assert percentile_s([], 0.5) == percentile_s([0] * BUCKETS, 0.99) == 0.0


def test_percentiles_are_read_from_the_bucket_that_holds_the_rank() -> None:
    histogram = histogram_of(*[0.001] * 98, 1.0, 10.0)
    near = {"rel": 0.19}
    assert percentile_s(histogram, 0.50) == pytest.approx(0.001, **near)
    assert percentile_s(histogram, 0.98) == pytest.approx(0.001, **near)
    assert percentile_s(histogram, 0.99) == pytest.approx(1.0, **near)
    assert percentile_s(histogram, 1.00) == pytest.approx(10.0, **near)


@given(st.lists(DURATIONS, min_size=1, max_size=50), st.lists(DURATIONS, min_size=1, max_size=50))
def test_a_merged_histogram_equals_the_histogram_of_all_runs(one: list[float], other: list[float]) -> None:
    merged = [a + b for a, b in zip(histogram_of(*one), histogram_of(*other), strict=True)]
    assert merged == histogram_of(*one, *other)


@given(st.lists(st.floats(min_value=1e-7, max_value=1e6), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_bounded_percentile_agrees_with_mean_and_maximum(durations_s: list[float], fraction: float) -> None:
    ordered, total_s = sorted(durations_s), sum(durations_s)
    rank = ceil(len(ordered) * fraction)
    found = bounded_percentile_s(histogram_of(*durations_s), fraction, total_s=total_s, max_s=ordered[-1])
    assert found <= ordered[-1]
    # All runs up to the rank may take as long as the percentile, and the others as long as the maximum.
    assert rank * found + (len(ordered) - rank) * ordered[-1] >= total_s * (1 - 1e-9)
    truth = ordered[rank - 1]
    if 1e-5 < truth < BOUNDS_S[-1]:
        assert found == pytest.approx(truth, rel=0.2)


def test_slower_runs_are_counted_in_whole_buckets_above_the_threshold() -> None:
    count, mean_s = slower_than(histogram_of(0.01, 0.02, 1.0, 2.0), 0.5)
    assert count == 2
    assert mean_s == pytest.approx(1.5, rel=0.19)


def test_a_run_in_the_bucket_of_the_threshold_does_not_count_as_slower() -> None:
    assert slower_than(histogram_of(0.5, 0.501), 0.5)[0] == 0


def test_no_run_is_slower_than_the_last_bound() -> None:
    assert slower_than(histogram_of(1e6), BOUNDS_S[-1] * 2) == (0, 0.0)
