"""A pipe from the supervisor to its children, by which a child notices that the supervisor has ended."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Self

from relay.stopping import Stop, start_without_signals

# Not an option of the command, since an option cannot be added to every command line.
VARIABLE = "OUTBOX_RELAY_PARENT_PIPE"


class ParentPipe:
    """The supervisor's end of the pipe, which it never writes to; a context manager."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.reader)
        os.close(self._writer)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a child, which must inherit `reader` too."""
        return os.environ | {VARIABLE: str(self.reader)}


def inherited() -> int | None:
    """Return the child's descriptor if this process is a child, and None otherwise; call it once."""
    # Removed, so that processes that this child starts do not inherit it.
    descriptor = os.environ.pop(VARIABLE, None)
    if descriptor is None:
        return None
    os.set_inheritable(int(descriptor), False)
    return int(descriptor)


def stop_with_supervisor(descriptor: int, stop: Stop) -> None:
    """Request a stop when the supervisor has ended, even if it was killed and sent no signal."""

    def watch() -> None:
        # The pipe becomes readable when the supervisor's end closes.
        os.read(descriptor, 1)
        # A relay that has already ended has closed its `Stop`.
        with suppress(OSError):
            stop.request()

    start_without_signals(threading.Thread(target=watch, name="relay-parent-pipe", daemon=True))
