"""The time of the next start of a relay process that has died."""

from __future__ import annotations

import pytest

from relay.backoff import Backoff
from relay.supervision.restart_backoff import STABLE_AFTER_S, RestartBackoff


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> RestartBackoff:
    return RestartBackoff(backoff=Backoff(base_s=1, cap_s=5, jitter=lambda _low, high: high), clock=clock)


def live(backoff: RestartBackoff, clock: Clock, seconds: float) -> float:
    """Start a process that dies after some seconds; return the wait that follows."""
    backoff.note_start()
    clock.now_s += seconds
    return backoff.note_death()


def test_the_first_start_is_due_at_once(backoff: RestartBackoff) -> None:
    assert backoff.due_in_s() == 0


def test_each_early_death_is_followed_by_a_longer_wait(backoff: RestartBackoff, clock: Clock) -> None:
    assert [live(backoff, clock, 0) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.deaths_in_a_row(running=False) == 5


def test_the_next_start_is_due_when_the_wait_is_over(backoff: RestartBackoff, clock: Clock) -> None:
    live(backoff, clock, 0)
    live(backoff, clock, 0)
    clock.now_s += 1.5
    assert backoff.due_in_s() == 0.5
    clock.now_s += 1
    assert backoff.due_in_s() < 0


def test_the_death_of_a_stable_process_starts_a_new_row(backoff: RestartBackoff, clock: Clock) -> None:
    for _ in range(4):
        live(backoff, clock, STABLE_AFTER_S - 1)
    assert live(backoff, clock, STABLE_AFTER_S) == 1
    assert backoff.deaths_in_a_row(running=False) == 1


def test_a_stable_process_ends_the_row_while_it_runs(backoff: RestartBackoff, clock: Clock) -> None:
    live(backoff, clock, 0)
    backoff.note_start()
    clock.now_s += STABLE_AFTER_S - 1
    assert backoff.deaths_in_a_row(running=True) == 1
    clock.now_s += 1
    assert backoff.deaths_in_a_row(running=True) == 0


def test_time_without_a_process_does_not_end_the_row(backoff: RestartBackoff, clock: Clock) -> None:
    live(backoff, clock, 0)
    clock.now_s += STABLE_AFTER_S
    assert backoff.deaths_in_a_row(running=False) == 1


def test_the_wait_before_a_start_does_not_count_as_running(backoff: RestartBackoff, clock: Clock) -> None:
    live(backoff, clock, 1)
    clock.now_s += STABLE_AFTER_S
    assert live(backoff, clock, 1) == 2


def test_the_default_backoff_has_jitter() -> None:
    first = [RestartBackoff().note_death() for _ in range(50)]
    assert len(set(first)) > 1
