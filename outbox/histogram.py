"""Fixed exponential buckets for durations, so that histograms add up over processes, hosts and time.

Each bound is the square root of two times the one before, as in the base-2 exponential histograms of
OpenTelemetry (scale 1): a percentile read from the geometric middle of its bucket is at most 19 % off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# 57 bounds from 10 µs to about 45 minutes; the last bucket holds all that is longer.
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
    """Return the geometric middle of a bucket, in seconds."""
    if index == 0:
        return FIRST_BOUND_S / 2
    return BOUNDS_S[min(index, BUCKETS - 2)] / 2**0.25


def percentile_s(histogram: Sequence[int], fraction: float) -> float:
    """Return the duration below which `fraction` of the runs stayed, 0.0 for an empty histogram."""
    total = sum(histogram)
    rank = math.ceil(total * fraction)
    seen = 0
    for index, count in enumerate(histogram):
        seen += count
        if count and seen >= rank:
            return middle_s(index)
    return 0.0


def slower_than(histogram: Sequence[int], threshold_s: float) -> tuple[int, float]:
    """Return how many runs were slower than `threshold_s`, and their mean in seconds.

    Both are read from whole buckets: the one that holds the threshold counts as not slower.
    """
    first = bucket_of(threshold_s) + 1
    count = sum(histogram[first:])
    total_s = sum(number * middle_s(first + index) for index, number in enumerate(histogram[first:]))
    return count, total_s / count if count else 0.0
