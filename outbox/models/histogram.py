"""Fixed exponential buckets for durations, so that histograms add up over processes, hosts and time.

Each bound is √2 times the bound before, as in the base-2 exponential histograms of OpenTelemetry (scale 1).
So a percentile that is read from the geometric middle of its bucket is at most 19 % off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# 57 bounds from 10 µs to about 45 minutes; the last bucket holds all longer durations.
FIRST_BOUND_S = 1e-5
BUCKETS = 58
BOUNDS_S = tuple(FIRST_BOUND_S * 2 ** (index / 2) for index in range(BUCKETS - 1))

_OFFSET = -math.log2(FIRST_BOUND_S) * 2


def bucket_of(duration_s: float) -> int:
    """Return the index of the bucket whose upper bound is the first at or above `duration_s`."""
    if duration_s <= FIRST_BOUND_S:
        return 0
    return min(math.ceil(math.log2(duration_s) * 2 + _OFFSET), BUCKETS - 1)


def middle_s(index: int) -> float:
    """Return the geometric middle of a bucket, in seconds; the last bucket counts as wide as the others."""
    if index == 0:
        return FIRST_BOUND_S / 2
    return BOUNDS_S[index - 1] * 2**0.25


def percentile_s(histogram: Sequence[int], fraction: float) -> float:
    """Return the duration that `fraction` of the runs did not exceed, 0.0 for an empty histogram."""
    total = sum(histogram)
    rank = math.ceil(total * fraction)
    seen = 0
    for index, count in enumerate(histogram):
        seen += count
        if count and seen >= rank:
            return middle_s(index)
    return 0.0


def bounded_percentile_s(histogram: Sequence[int], fraction: float, *, total_s: float, max_s: float) -> float:
    """Return a percentile that agrees with the total and the maximum of the same runs.

    The middle of a bucket may exceed the maximum, or lie below the mean of runs that all took the same time.
    With `rank` of `runs` runs no longer than the percentile, and the others no longer than the maximum, the
    percentile is at least `(total_s - (runs - rank) * max_s) / rank`. The runs from the percentile on are at
    least as long as it, so it is at most `total_s / (runs - rank + 1)`.
    """
    runs = sum(histogram)
    if not runs:
        return 0.0
    rank = max(1, math.ceil(runs * fraction))
    lowest_s = (total_s - (runs - rank) * max_s) / rank
    highest_s = min(max_s, total_s / (runs - rank + 1))
    return min(max(percentile_s(histogram, fraction), lowest_s), highest_s)


def slower_than(histogram: Sequence[int], threshold_s: float) -> tuple[int, float]:
    """Return how many runs were slower than `threshold_s`, and their mean in seconds.

    Both are read from whole buckets: the bucket that holds the threshold counts as not slower.
    """
    first = bucket_of(threshold_s) + 1
    count = sum(histogram[first:])
    total_s = sum(number * middle_s(first + index) for index, number in enumerate(histogram[first:]))
    return count, total_s / count if count else 0.0
