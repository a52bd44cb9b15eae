"""One way to ask a relay to stop, which every wait of it listens to."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


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
    """Stop after the batch in hand at SIGTERM, SIGINT or SIGHUP; exit at once at a second one."""

    def handle(number: int, frame: FrameType | None) -> None:
        # A terminal that goes away, and some process managers, send SIGHUP on top of another signal.
        if stop.requested and number != signal.SIGHUP:
            # The database rolls the claim back, so that the rows stay pending.
            os._exit(128 + number)
        stop.request()

    with _handling(dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), handle)):
        yield


@contextmanager
def on_signals_of_child(stop: Stop) -> Generator[None]:
    """Stop after the batch in hand at SIGTERM or SIGHUP, however often; leave the rest to the supervisor.

    A process manager may tell every process of a service, and then the supervisor passes it on: the second
    signal is no second wish. Ctrl-C is the supervisor's to hear, which kills its children when it is hurried.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.requested:
            stop.request()

    handlers: dict[signal.Signals, Handler] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), handle)
    with _handling(handlers | {signal.SIGINT: signal.SIG_IGN}):
        # The supervisor blocked it for the time until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield


@contextmanager
def _handling(handlers: Mapping[signal.Signals, Handler]) -> Generator[None]:
    before = {number: signal.getsignal(number) for number in handlers}
    # What nohup has shielded from the end of its terminal stays so.
    if before.get(signal.SIGHUP) is signal.SIG_IGN:
        handlers = {number: handler for number, handler in handlers.items() if number != signal.SIGHUP}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            signal.signal(number, before[number])
