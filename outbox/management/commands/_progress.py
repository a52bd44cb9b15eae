"""The progress of a command, as one line of a terminal that is written again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Any, Self

WIDTH = 30
# A terminal over a slow link gets no more than this.
DRAW_INTERVAL_S = 0.1


class Progress:
    """Counts the rows that a command has changed; a context manager, for several threads.

    With a total the line is a bar, and its last state stays. Otherwise the line is removed in the end.

    Args:
        stream: the standard error; nothing is written unless it is a terminal.
        things: the rows that are counted, in the plural.
        total: the number of rows at the start; None if it is unknown.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        stream: Any,
        things: str,
        *,
        total: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream.isatty() else None
        self._things = things
        self._total = total
        self._clock = clock
        self._done = 0
        self._began = self._drawn_at = clock()
        self._width = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._total is not None:
            self._write(self._line(), end="\n")
        elif self._width:
            self._write("", end="\r")

    def add(self, count: int) -> None:
        """Count rows that were changed since the last call."""
        with self._lock:
            self._done += count
            if self._clock() - self._drawn_at >= DRAW_INTERVAL_S:
                self._write(self._line())

    def _line(self) -> str:
        self._drawn_at = self._clock()
        rate = f"{self._done / max(self._drawn_at - self._began, 1e-9):,.0f}/s"
        if self._total is None:
            return f"{self._done:,} {self._things}, {rate}"
        # Rows may be added meanwhile, so more than the total may be done.
        total = max(self._total, self._done)
        bar = "█" * (WIDTH * self._done // total if total else WIDTH)
        return f"{bar:░<{WIDTH}} {self._done:,}/{total:,} {self._things}, {rate}"

    def _write(self, line: str, *, end: str = "") -> None:
        if self._stream is not None:
            # Spaces cover the rest of an earlier line, which was longer when its rate had more digits.
            self._stream.write(f"\r{line:<{self._width}}{end}")
            self._stream.flush()
            self._width = len(line)
