"""The end of a wait by another thread."""

from __future__ import annotations

import socket
from contextlib import suppress


class Waker:
    """Ends the waits of the thread that has opened it."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> None:
        """Let `wake` end waits from now on, until `close`."""
        self._ends = reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

    def close(self) -> None:
        """Let `wake` do nothing."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    @property
    def sources(self) -> tuple[int, ...]:
        """The descriptors to wait for."""
        return (self._ends[0].fileno(),) if self._ends else ()

    def wake(self) -> None:
        """End the current wait, or the next one; safe in every thread."""
        ends = self._ends
        if ends is not None:
            # A full buffer wakes too, and after `close` nobody waits.
            with suppress(OSError):
                ends[1].send(b"\0")

    def was_woken(self) -> bool:
        """Return whether `wake` was called since the last call."""
        if self._ends is None:
            return False
        try:
            return bool(self._ends[0].recv(4096))
        except BlockingIOError:
            return False
