"""A report that is shown again and again, with rich and without."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import pytest
from django.core.management.base import CommandError

from outbox.management.commands._watch import watch


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Sleeps:
    """Counts the waits, and ends the watch as Ctrl-C does."""

    def __init__(self, at_most: int) -> None:
        self._left = at_most
        self.waited: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waited.append(seconds)
        if len(self.waited) == self._left:
            raise KeyboardInterrupt


@pytest.fixture(params=["rich", "plain"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal, with rich or as if rich were not installed."""
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    else:
        pytest.importorskip("rich")
    return Terminal()


def test_the_report_is_shown_anew_until_ctrl_c(terminal: Terminal) -> None:
    texts, sleeps = iter(["Well.", "Trouble.", "Well again."]), Sleeps(3)
    watch(lambda: next(texts), terminal, interval_s=2.0, sleep=sleeps)
    shown = terminal.getvalue()
    assert shown.index("Well.") < shown.index("Trouble.") < shown.index("Well again.")
    assert "stop with Ctrl-C" in shown
    assert sleeps.waited == [2.0] * 3


def test_a_database_that_is_away_is_asked_again(terminal: Terminal) -> None:
    answers: list[Any] = [CommandError("database 'default' did not answer"), "Well."]

    def report() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    watch(report, terminal, interval_s=2.0, sleep=Sleeps(2))
    assert "did not answer" in terminal.getvalue()
    assert "Well." in terminal.getvalue()


def test_a_file_is_refused() -> None:
    with pytest.raises(CommandError, match="needs a terminal"):
        watch(lambda: "", StringIO(), interval_s=2.0)
