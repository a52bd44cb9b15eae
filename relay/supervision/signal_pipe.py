"""A pipe of signals: a process waits for them and handles them in order, outside signal handlers."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Collection
from types import FrameType
from typing import Self

MAX_SIGNALS = 4096


class SignalPipe:
    """Receives some signals; a context manager, for the main thread only."""

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        # A process that nohup started keeps ignoring SIGHUP.
        ignores_sighup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._numbers = set(numbers) - ({signal.SIGHUP} if ignores_sighup else set())
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def __enter__(self) -> Self:
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _do_nothing) for number in self._numbers}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float | None) -> list[int]:
        """Wait for signals or the timeout, without limit if it is None; return their numbers in order."""
        timeout_s = None if timeout_s is None else max(0.0, timeout_s)
        readable, _writable, _broken = select.select([self._reader], (), (), timeout_s)
        # Python has written the number of each signal.
        return list(self._reader.recv(MAX_SIGNALS)) if readable else []


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python writes the numbers only of signals that have a handler."""
