"""Deadlines for calls without a timeout, and the late results of abandoned calls."""

from __future__ import annotations

import threading

import pytest

from relay.deadlines import within
from tests.support.processes import wait_until


def test_a_call_that_ends_in_time_returns_its_result_or_raises_its_error() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_a_call_that_takes_too_long_is_abandoned() -> None:
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        within(0.05, lambda: over.wait(30))
    assert not over.is_set()
    over.set()


def test_a_result_in_time_is_not_undone() -> None:
    undone = threading.Event()
    assert within(20, lambda: "done", undo=undone.set) == "done"
    assert not undone.is_set()


def test_an_error_in_time_is_raised_and_not_undone() -> None:
    undone = threading.Event()
    with pytest.raises(ZeroDivisionError):
        within(20, lambda: 1 // 0, undo=undone.set)
    assert not undone.is_set()


@pytest.mark.parametrize("result", ["done", ZeroDivisionError()])
def test_a_late_result_is_undone(result: object) -> None:
    go_on, undone = threading.Event(), threading.Event()

    def call() -> object:
        go_on.wait(20)
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(TimeoutError):
        within(0.01, call, undo=undone.set)
    assert not undone.is_set()
    go_on.set()
    assert undone.wait(20)


def test_an_undo_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TimeoutError):
        within(0.01, lambda: threading.Event().wait(0.1), undo=lambda: 1 // 0)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, what="the log")
