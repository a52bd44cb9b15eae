"""How often a look starts from the very beginning."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest

from relay.claim import front
from relay.claim.front import BEGINNING, Front, Position

NOW_US = 1_800_000_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(front, "time", clock)
    return clock


def look(one: Front, clock: SimpleNamespace, took_s: float) -> Position:
    with one.look() as start:
        clock.now += took_s
    one.move(None, now_us=NOW_US)
    return start


@pytest.mark.parametrize(("took_s", "wait_s"), [(0.001, 0.0), (0.055, 1.0), (0.205, 4.0), (60.0, 10.0)])
def test_the_longer_a_full_look_takes_the_later_the_next_but_ten_seconds_at_most(
    clock: SimpleNamespace, took_s: float, wait_s: float
) -> None:
    one = Front()
    assert look(one, clock, took_s) == BEGINNING
    if wait_s:
        clock.now += wait_s - 0.1
        assert look(one, clock, 0.0) != BEGINNING
    clock.now += 0.2
    assert look(one, clock, 0.0) == BEGINNING


def test_late_rows_hasten_a_full_look_that_has_taken_no_more_than_half_of_the_time(
    clock: SimpleNamespace,
) -> None:
    one = Front()
    look(one, clock, 0.2)
    clock.now += 0.1
    assert one.hastened_in_s() == inf
    one.hasten()
    assert look(one, clock, 0.0) != BEGINNING
    assert one.hastened_in_s() == pytest.approx(0.1)
    clock.now += 0.15
    assert one.hastened_in_s() == 0
    assert look(one, clock, 0.0) == BEGINNING
    assert one.hastened_in_s() == inf


def test_a_claim_need_not_look_for_what_a_look_ahead_has_just_seen(clock: SimpleNamespace) -> None:
    ahead, claims = Front(), Front()
    look(ahead, clock, 0.055)
    claims.follow(ahead)
    clock.now += 1.0 + front.GRACE_S - 0.1
    assert look(claims, clock, 0.0) == ahead.position
    clock.now += 0.2
    assert look(claims, clock, 0.0) == BEGINNING
    claims.follow(ahead)
    claims.hasten()
    assert look(claims, clock, 0.0) == BEGINNING


@pytest.mark.parametrize(("took_s", "wait_s"), [(0.001, 0.0), (60.0, front.LONGEST_S)])
def test_a_claim_s_own_look_comes_at_once_if_it_is_cheap_and_after_ten_seconds_at_most(
    clock: SimpleNamespace, took_s: float, wait_s: float
) -> None:
    ahead, claims = Front(), Front()
    look(ahead, clock, took_s)
    claims.follow(ahead)
    clock.now += wait_s
    assert look(claims, clock, 0.0) == BEGINNING


def test_late_rows_do_not_put_a_full_look_off(clock: SimpleNamespace) -> None:
    one = Front()
    look(one, clock, 0.001)
    one.hasten()
    assert look(one, clock, 0.0) == BEGINNING
