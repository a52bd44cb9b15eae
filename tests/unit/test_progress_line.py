"""The progress of a command on a terminal."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management.base import OutputWrapper

from outbox.management.commands._progress import DRAW_INTERVAL_S, ProgressLine


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


def line(stream: StringIO, clock: SimpleNamespace) -> ProgressLine:
    return ProgressLine(OutputWrapper(stream), "events", clock=lambda: clock.now)


def test_the_line_is_rewritten_and_gone_in_the_end(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with line(terminal, clock) as progress:
        clock.now += 1
        progress.add(1200)
        clock.now += 1
        progress.add(300)
        assert terminal.getvalue() == "\r1,200 events, 1,200/s\r1,500 events, 750/s  "
    *_, cleared, after = terminal.getvalue().split("\r")
    assert cleared.strip() == after == ""
    assert len(cleared) >= len("1,500 events, 750/s")


def test_the_line_is_drawn_at_most_ten_times_a_second(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with line(terminal, clock) as progress:
        for _ in range(200):
            clock.now += DRAW_INTERVAL_S / 10
            progress.add(1)
        assert 19 <= terminal.getvalue().count("events") <= 20


def test_nothing_is_written_without_a_terminal(clock: SimpleNamespace) -> None:
    file = StringIO()
    with line(file, clock) as progress:
        clock.now += 1
        progress.add(5)
    assert file.getvalue() == ""


def test_a_quick_command_draws_no_line(clock: SimpleNamespace) -> None:
    terminal = Terminal()
    with line(terminal, clock) as progress:
        progress.add(5)
    assert terminal.getvalue() == ""
