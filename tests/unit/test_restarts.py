"""When a relay process that has died may start again."""

from __future__ import annotations

import random

import pytest

from relay.backoff import Backoff
from relay.restarts import WELL_AFTER_S, Restarts


class Clock:
    """Shows the seconds that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return Clock()


@pytest.fixture
def restarts(clock: Clock) -> Restarts:
    return Restarts(backoff=Backoff(base_s=1, cap_s=5), clock=clock)


def live(restarts: Restarts, clock: Clock, seconds: float) -> float:
    """Start a process that dies after so many seconds; return the wait that follows."""
    restarts.note_start()
    clock.now_s += seconds
    return restarts.note_death()


def test_the_first_start_is_due_at_once(restarts: Restarts) -> None:
    assert restarts.due_in_s() == 0


def test_each_early_death_is_followed_by_a_longer_wait(restarts: Restarts, clock: Clock) -> None:
    assert [live(restarts, clock, 0) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert restarts.in_a_row(running=False) == 5


def test_the_next_start_is_due_when_the_wait_is_over(restarts: Restarts, clock: Clock) -> None:
    live(restarts, clock, 0)
    live(restarts, clock, 0)
    clock.now_s += 1.5
    assert restarts.due_in_s() == 0.5
    clock.now_s += 1
    assert restarts.due_in_s() < 0


def test_a_long_life_makes_up_for_early_deaths(restarts: Restarts, clock: Clock) -> None:
    for _ in range(4):
        live(restarts, clock, WELL_AFTER_S - 1)
    assert live(restarts, clock, WELL_AFTER_S) == 1
    assert restarts.in_a_row(running=False) == 1


def test_early_deaths_are_made_up_for_while_a_process_lives_long(restarts: Restarts, clock: Clock) -> None:
    live(restarts, clock, 0)
    restarts.note_start()
    clock.now_s += WELL_AFTER_S - 1
    assert restarts.in_a_row(running=True) == 1
    clock.now_s += 1
    assert restarts.in_a_row(running=True) == 0


def test_no_process_is_not_well(restarts: Restarts, clock: Clock) -> None:
    live(restarts, clock, 0)
    clock.now_s += WELL_AFTER_S
    assert restarts.in_a_row(running=False) == 1


def test_the_wait_does_not_count_as_life(restarts: Restarts, clock: Clock) -> None:
    live(restarts, clock, 1)
    clock.now_s += WELL_AFTER_S
    assert live(restarts, clock, 1) == 2


def test_without_a_backoff_given_a_wait_has_jitter() -> None:
    first = [Restarts().note_death() for _ in range(50)]
    assert len(set(first)) > 1
