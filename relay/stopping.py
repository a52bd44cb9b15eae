"""The stop of a relay, which ends every wait of the relay."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

from outbox.posix import HANGUP, STOP_SIGNALS, all_signals_blocked

SignalHandler = Callable[[int, FrameType | None], None] | signal.Handlers


class Stop:
    """A request to stop, which can be waited for together with file descriptors; a context manager."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._requested = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._reader.close()
        self._writer.close()

    def request(self) -> None:
        """Request a stop; safe in signal handlers and other threads."""
        self._requested = True
        self._writer.send(b"\0")

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        """Wait for a stop, for a readable descriptor of `also`, or until the timeout.

        Returns:
            Whether one of the descriptors is readable.
        """
        if self._requested:
            return False
        readable, _writable, _broken = select.select(
            [self._reader.fileno(), *also], (), (), max(0.0, timeout_s)
        )
        return any(descriptor in readable for descriptor in also)


def start_without_signals(thread: threading.Thread) -> None:
    """Start a thread that gets no signals.

    A thread starts with the signal mask of the thread that starts it. A signal delivered to the new thread
    would not wake the main thread, which handles it.
    """
    with all_signals_blocked():
        thread.start()


@contextmanager
def on_signals(stop: Stop) -> Generator[None]:
    """Stop after the current batch at SIGTERM, SIGINT or SIGHUP; exit at once at a second signal."""

    def handle(number: int, frame: FrameType | None) -> None:
        # A closed terminal and some process managers send SIGHUP in addition to another signal.
        if stop.requested and number != HANGUP:
            # The database rolls the claim back, so its rows stay pending.
            os._exit(128 + number)
        stop.request()

    with _handling(dict.fromkeys(STOP_SIGNALS, handle)):
        yield


@contextmanager
def on_signals_of_child(stop: Stop) -> Generator[None]:
    """Stop after the current batch at each SIGTERM or SIGHUP; leave other signals to the supervisor.

    A process manager may send its signal to every process of a service, and the supervisor then sends it
    again. So a second signal does not mean "at once". The supervisor handles Ctrl-C; at a second one it kills
    its children.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.requested:
            stop.request()

    handlers: dict[signal.Signals, SignalHandler] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), handle)
    with _handling(handlers | {signal.SIGINT: signal.SIG_IGN}):
        # The supervisor blocked SIGINT until this handler was set.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield


@contextmanager
def _handling(handlers: Mapping[signal.Signals, SignalHandler]) -> Generator[None]:
    before = {number: signal.getsignal(number) for number in handlers}
    # A process that nohup started keeps ignoring SIGHUP.
    if HANGUP and before.get(HANGUP) is signal.SIG_IGN:
        handlers = {number: handler for number, handler in handlers.items() if number != HANGUP}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            signal.signal(number, before[number])
