"""A progress bar for a drain that somebody watches."""

from __future__ import annotations

import time
from threading import Lock
from typing import TextIO

WIDTH = 30


class Progress:
    """One line of a terminal, drawn again at most ten times a second."""

    def __init__(self, total: int, terminal: TextIO) -> None:
        self._total = total
        self._terminal = terminal
        self._done = 0
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._width = 0
        # The relays of several databases report from threads of their own.
        self._lock = Lock()

    def advance(self, count: int) -> None:
        """Add to what is done."""
        with self._lock:
            self._done += count
            if time.monotonic() - self._drawn_at >= 0.1:
                self._draw()

    def finish(self) -> None:
        """Draw the last state and end the line."""
        self._draw()
        self._terminal.write("\n")

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        # Events published meanwhile are drained too, so the total may turn out to be more.
        self._total = max(self._total, self._done)
        share = self._done / self._total if self._total else 1.0
        rate = self._done / max(self._drawn_at - self._started, 1e-9)
        bar = "█" * int(share * WIDTH)
        line = f"{bar:░<{WIDTH}} {self._done}/{self._total} deliveries, {rate:,.0f}/s"
        # Spaces over what is left of a longer line, drawn when the rate had more digits.
        self._terminal.write(f"\r{line:<{self._width}} ")
        self._width = len(line)
        self._terminal.flush()
