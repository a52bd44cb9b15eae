"""A report that is shown again and again on a terminal, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.management.base import CommandError

# Clear the screen from the cursor's first position: what was above stays in the terminal's history.
_CLEAR = "\x1b[2J\x1b[H"


def watch(
    report: Callable[[], str],
    stream: Any,
    *,
    interval_s: float,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show a report, and show it anew after each interval; return at Ctrl-C.

    With rich, the report has a screen of its own, and the terminal is as before at the end.

    Args:
        report: returns the text; the message of its `CommandError` is shown instead.
        sleep: waits between two reports.

    Raises:
        CommandError: if the output is no terminal.
    """
    if not stream.isatty():
        raise CommandError("--watch needs a terminal; leave it out")
    with suppress(KeyboardInterrupt), _screen(stream) as show:
        while True:
            try:
                text = report()
            except CommandError as problem:
                # The database may be away; it is asked again.
                text = str(problem)
            # First, since a small terminal cuts the end off.
            show(f"Every {interval_s:g} s; stop with Ctrl-C.\n\n{text}\n")
            sleep(interval_s)


@contextmanager
def _screen(stream: Any) -> Generator[Callable[[str], object]]:
    """Yield the function that replaces the content of the screen."""
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ModuleNotFoundError:

        def show(text: str) -> None:
            stream.write(f"{_CLEAR}{text}")
            stream.flush()

        yield show
        return
    console = Console(file=stream)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text), refresh=True)
