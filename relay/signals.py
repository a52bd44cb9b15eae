"""Signals as something to wait for: they are read in order, outside any handler."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Collection
from types import FrameType
from typing import Self

MANY = 4096


class Signals:
    """Collects some signals; a context manager, for the main thread only."""

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        # What nohup has shielded from the end of its terminal stays so.
        shielded = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._numbers = set(numbers) - ({signal.SIGHUP} if shielded else set())
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def __enter__(self) -> Self:
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _only_wake) for number in self._numbers}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float | None) -> list[int]:
        """Wait for signals or for the time to pass, for ever if it is None; return the numbers in order."""
        patience_s = None if timeout_s is None else max(0.0, timeout_s)
        readable, _writable, _broken = select.select([self._reader], (), (), patience_s)
        # Python has written the number of each signal.
        return list(self._reader.recv(MANY)) if readable else []


def _only_wake(number: int, frame: FrameType | None) -> None:
    """Do nothing: having a handler is what makes Python write the signal's number."""
