"""The progress of a command on a terminal."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest

from outbox.management.commands._progress import DRAW_INTERVAL_S, WIDTH, Progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


def progress(stream: StringIO, clock: SimpleNamespace, total: int | None = None) -> Progress:
    return Progress(stream, "events", total=total, clock=lambda: clock.now)


# ---------------------------------------------------------------- without a total


def test_the_line_is_rewritten_and_gone_in_the_end(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with progress(terminal, clock) as line:
        clock.now += 1
        line.add(1200)
        clock.now += 1
        line.add(300)
        assert terminal.getvalue() == "\r1,200 events, 1,200/s\r1,500 events, 750/s  "
    *_, cleared, after = terminal.getvalue().split("\r")
    assert cleared.strip() == after == ""
    assert len(cleared) >= len("1,500 events, 750/s")


def test_the_line_is_drawn_at_most_ten_times_a_second(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with progress(terminal, clock) as line:
        for _ in range(200):
            clock.now += DRAW_INTERVAL_S / 10
            line.add(1)
        assert 19 <= terminal.getvalue().count("events") <= 20


def test_a_quick_command_draws_no_line(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with progress(terminal, clock) as line:
        line.add(5)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("total", [None, 5])
def test_nothing_is_written_without_a_terminal(clock: SimpleNamespace, total: int | None) -> None:
    file = StringIO()
    with progress(file, clock, total) as line:
        clock.now += 1
        line.add(5)
    assert file.getvalue() == ""


# ---------------------------------------------------------------- with a total


def last(clock: SimpleNamespace, total: int, *counts: int) -> str:
    """Return the last state of a bar, which stays on the terminal."""
    terminal = Terminal()
    with progress(terminal, clock, total) as bar:
        for count in counts:
            bar.add(count)
    assert terminal.getvalue().endswith("\n")
    return terminal.getvalue().rstrip("\n").rpartition("\r")[2]


def test_the_bar_of_nothing_to_do_is_full(clock: SimpleNamespace) -> None:
    assert last(clock, 0).startswith("█" * WIDTH + " 0/0 events, 0/s")


def test_the_last_state_is_drawn_without_an_interval(clock: SimpleNamespace) -> None:
    assert " 3/3 events" in last(clock, 3, 1, 1, 1)


def test_a_part_of_the_rows_fills_a_part_of_the_bar(clock: SimpleNamespace) -> None:
    filled = WIDTH // 4
    assert last(clock, 4, 1).startswith("█" * filled + "░" * (WIDTH - filled) + " 1/4 ")


def test_more_rows_than_counted_raise_the_total(clock: SimpleNamespace) -> None:
    assert last(clock, 2, 5).startswith("█" * WIDTH + " 5/5 ")
