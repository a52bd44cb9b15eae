"""One way to ask a relay to stop, which every wait of it listens to."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self


class Stop:
    """An event that can be waited for together with file descriptors; a context manager."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._requested = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._reader.close()
        self._writer.close()

    def request(self) -> None:
        """Ask to stop; safe from signal handlers and other threads."""
        self._requested = True
        self._writer.send(b"\0")

    @property
    def requested(self) -> bool:
        """Return whether a stop was asked for."""
        return self._requested

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        """Wait for a stop, for a readable descriptor of `also`, or for the time to pass.

        Returns:
            Whether one of the descriptors is readable.
        """
        if self._requested:
            return False
        readable, _writable, _broken = select.select(
            [self._reader.fileno(), *also], (), (), max(0.0, timeout_s)
        )
        return any(descriptor in readable for descriptor in also)


@contextmanager
def on_signals(stop: Stop) -> Generator[None]:
    """Stop after the batch in hand at SIGTERM or SIGINT; exit at once at the second one."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            # The database rolls the claim back, so that the rows stay pending.
            os._exit(128 + number)
        stop.request()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
