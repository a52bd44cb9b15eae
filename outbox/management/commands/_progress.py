"""The progress of a command, as one line of a terminal that is written again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

# A terminal over a slow link gets no more than this.
DRAW_INTERVAL_S = 0.1


class ProgressLine:
    """Counts what a command has done; a context manager that removes the line at its end.

    Args:
        stream: the standard error of the command; nothing is written unless it is a terminal.
        what: the things that are counted, in the plural.
        clock: returns monotonic seconds.
    """

    def __init__(self, stream: Any, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream.isatty() else None
        self._what = what
        self._clock = clock
        self._done = 0
        self._began = self._drawn_at = clock()
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._width:
            self._write("")

    def add(self, count: int) -> None:
        """Count what was done since the last call."""
        self._done += count
        now = self._clock()
        if self._stream is not None and now - self._drawn_at >= DRAW_INTERVAL_S:
            rate = self._done / (now - self._began)
            self._write(f"{self._done:,} {self._what}, {rate:,.0f}/s")
            self._drawn_at = now

    def _write(self, line: str) -> None:
        if self._stream is not None:
            # Spaces cover the rest of an earlier line, which was longer.
            self._stream.write(f"\r{line:<{self._width}}" + ("" if line else "\r"), ending="")
            self._stream.flush()
            self._width = len(line)
