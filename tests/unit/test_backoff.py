"""Waits between attempts."""

from __future__ import annotations

import pytest

from relay import backoff
from relay.backoff import Backoff, delay_for


def test_a_delay_is_between_zero_and_a_ceiling_that_doubles() -> None:
    for attempt, ceiling_s in enumerate([1, 2, 4, 8, 16, 20, 20]):
        delays = [delay_for(attempt, base_s=1, cap_s=20) for _ in range(500)]
        assert min(delays) >= 0
        assert ceiling_s * 0.8 < max(delays) <= ceiling_s


def test_delays_are_spread_evenly() -> None:
    delays = [delay_for(3, base_s=1, cap_s=100) for _ in range(2000)]
    assert sum(delays) / len(delays) == pytest.approx(4, rel=0.1)


def test_any_number_of_attempts_has_a_delay() -> None:
    assert 0 <= delay_for(10**9) <= backoff.CAP_S


def test_waits_grow_with_each_failure_until_a_success() -> None:
    waits = Backoff(base_s=1, cap_s=5, jitter=lambda _low, high: high)
    assert [waits.next_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    waits.reset()
    assert waits.next_s() == 1
