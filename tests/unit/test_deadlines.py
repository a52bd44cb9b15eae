"""Calls that cannot be bounded otherwise."""

from __future__ import annotations

import threading

import pytest

from relay.deadlines import within


def test_a_call_within_its_time_returns_or_raises_as_it_does() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_a_call_that_takes_too_long_is_given_up() -> None:
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        within(0.05, lambda: over.wait(30))
    assert not over.is_set()
    over.set()
