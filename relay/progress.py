"""A progress bar for a drain on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import TextIO

WIDTH = 30
DRAW_INTERVAL_S = 0.1


class Progress:
    """One line of a terminal, drawn at most ten times a second.

    Args:
        total: the deliveries that were due at the start.
        clock: returns monotonic seconds.
    """

    def __init__(self, total: int, terminal: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._terminal = terminal
        self._clock = clock
        self._done = 0
        self._started = clock()
        self._drawn_at = 0.0
        self._width = 0
        # The relays of several databases report from several threads.
        self._lock = Lock()

    def advance(self, count: int) -> None:
        """Count dispatched deliveries."""
        with self._lock:
            self._done += count
            if self._clock() - self._drawn_at >= DRAW_INTERVAL_S:
                self._draw()

    def finish(self) -> None:
        """Draw the last state and end the line."""
        self._draw()
        self._terminal.write("\n")

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        # A drain also dispatches events that are published meanwhile, so more than the total may be done.
        self._total = max(self._total, self._done)
        share = self._done / self._total if self._total else 1.0
        rate = self._done / max(self._drawn_at - self._started, 1e-9)
        bar = "█" * int(share * WIDTH)
        line = f"{bar:░<{WIDTH}} {self._done}/{self._total} deliveries, {rate:,.0f}/s"
        # Spaces cover the rest of an earlier line, which was longer when its rate had more digits.
        self._terminal.write(f"\r{line:<{self._width}} ")
        self._width = len(line)
        self._terminal.flush()
