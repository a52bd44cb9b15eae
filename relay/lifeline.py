"""A pipe from the supervisor to its children: it says that they are children, and when they are orphans."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Self

from .stopping import Stop

# An option of the command would do, but the children's command line may not be one that can be added to.
VARIABLE = "OUTBOX_RELAY_LIFELINE"


class Lifeline:
    """The supervisor's side; a context manager that lets the children go at its end."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.reader)
        os.close(self._writer)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a child, which must inherit `reader` too."""
        return os.environ | {VARIABLE: str(self.reader)}


def inherited() -> int | None:
    """Return the child's side if this process is a child, and None otherwise; ask once."""
    # Not for the children's own children.
    descriptor = os.environ.pop(VARIABLE, None)
    if descriptor is None:
        return None
    os.set_inheritable(int(descriptor), False)
    return int(descriptor)


def stop_with_supervisor(descriptor: int, stop: Stop) -> None:
    """Request a stop once the supervisor is gone, even if it was killed and could tell nobody."""

    def watch() -> None:
        # Nothing is ever written: the pipe becomes readable when its other end is closed.
        os.read(descriptor, 1)
        # A relay that is just ending by itself has nothing left to stop.
        with suppress(OSError):
            stop.request()

    # A thread begins with its maker's mask. Handlers run in the main thread, which a signal that came to this
    # one would not wake.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=watch, name="relay-lifeline", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
