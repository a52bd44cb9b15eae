"""Calls that cannot be bounded otherwise, and what becomes of those given up."""

from __future__ import annotations

import threading

import pytest

from relay.deadlines import within
from tests.processes import wait_until


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


def test_what_comes_of_a_call_in_time_stays() -> None:
    undone = threading.Event()
    assert within(20, lambda: "done", undo=undone.set) == "done"
    assert not undone.is_set()


def test_a_failure_in_time_is_raised_and_undoes_nothing() -> None:
    undone = threading.Event()
    with pytest.raises(ZeroDivisionError):
        within(20, lambda: 1 // 0, undo=undone.set)
    assert not undone.is_set()


@pytest.mark.parametrize("outcome", ["done", ZeroDivisionError()])
def test_what_comes_of_a_call_too_late_is_undone(outcome: object) -> None:
    go_on, undone = threading.Event(), threading.Event()

    def call() -> object:
        go_on.wait(20)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(TimeoutError):
        within(0.01, call, undo=undone.set)
    assert not undone.is_set()
    go_on.set()
    assert undone.wait(20)


def test_an_undoing_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TimeoutError):
        within(0.01, lambda: threading.Event().wait(0.1), undo=lambda: 1 // 0)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, what="the log")
