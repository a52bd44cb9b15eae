"""When a scan is a full one, and where other scans start."""

from __future__ import annotations

from datetime import timedelta
from math import inf

import pytest

from relay.claim.scan_cursor import (
    CHEAP_S,
    GRACE_S,
    MARGIN,
    MAX_PAUSE_S,
    MICROSECOND,
    PAUSE_FACTOR,
    START,
    Position,
    ScanCursor,
    ScanCursors,
)

NOW_US = 1_800_000_000_000_000
LATEST = Position(NOW_US - MARGIN // MICROSECOND)


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cursors(clock: Clock) -> ScanCursors:
    return ScanCursors(clock=clock)


def scan(
    cursors: ScanCursors, clock: Clock, *scanned: ScanCursor, took_s: float = 0.0, grace_s: float = 0.0
) -> Position:
    """Scan for the rows of cursors, find none, and return the start of the scan."""
    with cursors.scan(*scanned, grace_s=grace_s) as start:
        clock.now += took_s
    for cursor in scanned:
        cursor.move(None, now_us=NOW_US)
    return start


def test_a_scan_stays_a_full_one_while_full_scans_are_cheap(cursors: ScanCursors, clock: Clock) -> None:
    cursor = cursors.keyless
    starts = [scan(cursors, clock, cursor, took_s=CHEAP_S / 2) for _ in range(3)]
    assert starts == [START] * 3
    assert cursor.was_full


@pytest.mark.parametrize(
    ("took_s", "pause_s"),
    [
        (2 * CHEAP_S, PAUSE_FACTOR * 2 * CHEAP_S),
        (0.2, PAUSE_FACTOR * 0.2),
        # However long a full scan takes, the pause has a cap.
        (MAX_PAUSE_S, MAX_PAUSE_S),
        (60.0, MAX_PAUSE_S),
    ],
)
def test_full_scans_take_a_twentieth_of_the_time_and_their_pause_has_a_cap(
    cursors: ScanCursors, clock: Clock, took_s: float, pause_s: float
) -> None:
    cursor = cursors.keyless
    assert scan(cursors, clock, cursor, took_s=took_s) == START
    clock.now += pause_s - 0.01
    assert scan(cursors, clock, cursor) == LATEST
    assert not cursor.was_full
    clock.now += 0.02
    assert scan(cursors, clock, cursor) == START
    assert cursor.was_full


def test_a_request_for_late_commits_shortens_the_pause_to_the_duration_of_the_scan(
    cursors: ScanCursors, clock: Clock
) -> None:
    scan(cursors, clock, cursors.keyless, cursors.ordered, took_s=0.2)
    clock.now += 0.1
    assert cursors.requested_in_s() == inf
    cursors.request_full_scans()
    assert scan(cursors, clock, cursors.keyless, cursors.ordered) == LATEST
    assert cursors.requested_in_s() == pytest.approx(0.1)
    clock.now += 0.15
    assert cursors.requested_in_s() == 0
    assert scan(cursors, clock, cursors.keyless, cursors.ordered) == START
    assert cursors.requested_in_s() == inf


def test_a_request_for_late_commits_does_not_wait_longer_than_the_cap(
    cursors: ScanCursors, clock: Clock
) -> None:
    scan(cursors, clock, cursors.keyless, took_s=60.0)
    cursors.keyless.request_full_scan()
    assert cursors.keyless.requested_in_s() == MAX_PAUSE_S


def test_a_request_does_not_delay_a_cheap_full_scan(cursors: ScanCursors, clock: Clock) -> None:
    scan(cursors, clock, cursors.keyless, took_s=CHEAP_S / 2)
    cursors.keyless.request_full_scan()
    assert cursors.keyless.requested_in_s() == 0
    assert scan(cursors, clock, cursors.keyless) == START


def test_a_claim_leaves_an_overdue_full_scan_to_checks_for_its_grace(
    cursors: ScanCursors, clock: Clock
) -> None:
    cursor = cursors.keyless
    scan(cursors, clock, cursor, took_s=0.1)
    clock.now += PAUSE_FACTOR * 0.1 + GRACE_S - 0.01
    assert scan(cursors, clock, cursor, grace_s=GRACE_S) == LATEST
    clock.now += 0.02
    assert scan(cursors, clock, cursor, grace_s=GRACE_S) == START


def test_a_claim_makes_a_cheap_full_scan_without_grace(cursors: ScanCursors, clock: Clock) -> None:
    scan(cursors, clock, cursors.keyless, took_s=CHEAP_S / 2)
    assert scan(cursors, clock, cursors.keyless, grace_s=GRACE_S) == START


def test_a_claim_makes_a_requested_full_scan_without_grace(cursors: ScanCursors, clock: Clock) -> None:
    scan(cursors, clock, cursors.keyless, took_s=0.1)
    cursors.keyless.request_full_scan()
    clock.now += 0.11
    assert scan(cursors, clock, cursors.keyless, grace_s=GRACE_S) == START


def test_cursors_that_share_a_scan_start_at_the_first_of_their_positions(
    cursors: ScanCursors, clock: Clock
) -> None:
    keyless, ordered = cursors.keyless, cursors.ordered
    scan(cursors, clock, keyless, ordered, took_s=0.2)
    ordered.move(Position(7), now_us=NOW_US)
    assert scan(cursors, clock, keyless, ordered) == Position(7)
    assert not cursors.were_full


def test_a_shared_scan_is_full_for_all_its_cursors_when_it_is_due_for_one(
    cursors: ScanCursors, clock: Clock
) -> None:
    keyless, ordered = cursors.keyless, cursors.ordered
    scan(cursors, clock, keyless, took_s=60.0)
    scan(cursors, clock, ordered, took_s=0.2)
    clock.now += PAUSE_FACTOR * 0.2 + 0.01
    assert scan(cursors, clock, keyless) == LATEST
    assert scan(cursors, clock, keyless, ordered, took_s=0.2) == START
    assert cursors.were_full
    # The pause of both begins again.
    clock.now += PAUSE_FACTOR * 0.2 - 0.01
    assert scan(cursors, clock, keyless, ordered) == LATEST


def test_a_reset_makes_the_next_scan_of_each_kind_a_full_one(cursors: ScanCursors, clock: Clock) -> None:
    every = (cursors.keyless, cursors.ordered, cursors.of_batch("mails"))
    for cursor in every:
        scan(cursors, clock, cursor, took_s=60.0)
        scan(cursors, clock, cursor)
    # A drain ends only after a full scan of each kind.
    assert not cursors.were_full
    cursors.reset()
    assert [scan(cursors, clock, cursor) for cursor in every] == [START] * 3
    assert cursors.were_full


def test_a_batch_handler_keeps_its_cursor(cursors: ScanCursors) -> None:
    assert cursors.of_batch("mails") is cursors.of_batch("mails")
    assert cursors.of_batch("mails") is not cursors.of_batch("invoices")


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(hours=1)])
def test_a_position_is_never_within_the_margin_of_the_present(cursors: ScanCursors, ahead: timedelta) -> None:
    latest = Position(NOW_US + (ahead - MARGIN) // MICROSECOND)
    cursor = cursors.keyless
    for found in (None, Position(latest.due_us + 1), Position(latest.due_us, 1)):
        cursor.move(found, now_us=NOW_US, ahead=ahead)
        assert cursor.position == latest
    earlier = Position(latest.due_us - 1, 5)
    cursor.move(earlier, now_us=NOW_US, ahead=ahead)
    assert cursor.position == earlier
