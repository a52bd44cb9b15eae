"""When somebody on this host last notified, in a file that all processes of a user map into their memory.

To look costs no system call. Nothing is locked: of two who look at the same moment both notify, which does
no harm. A host without such a file has its processes notify each for itself.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

from .folders import name_of, own_folder

FOLDER = "outbox-wakeup"

logger = logging.getLogger(__name__)

# When, and the host's load.
_STATE = struct.Struct("=dI")
_LOAD = struct.Struct("=I")

# A notification that is left out adds one to the load, up to twice as many as make the host busy, and one
# that is sent takes two. So a host is busy from some 300 commits a second on, until there are less than 60.
BUSY = 3
SENT = 2


class Quiet:
    """A moment that processes share, by the clock that all processes of a host have in common.

    Args:
        memory: `BYTES` bytes, all zero at first.
    """

    BYTES = _STATE.size

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def is_over(self, now: float, length_s: float, *, busy_s: float = 0.0) -> bool:
        """Say whether the last one is longer ago than this, on a busy host `busy_s`; if so, it is now."""
        last, load = _STATE.unpack_from(self._memory)
        # One that is still to come is of a clock that began anew when the host did.
        if last <= now < last + (length_s if load < BUSY else max(length_s, busy_s)):
            _LOAD.pack_into(self._memory, _STATE.size - _LOAD.size, min(load + 1, 2 * BUSY))
            return False
        _STATE.pack_into(self._memory, 0, now, max(load - SENT, 0))
        return True

    def end(self) -> None:
        """Forget the last one, which came to nothing."""
        _STATE.pack_into(self._memory, 0, 0.0, 0)


@cache
def quiet_of(database: str) -> Quiet:
    """Return the one that processes share for a database."""
    try:
        return Quiet(_shared(own_folder("", FOLDER) / name_of(database)))
    except (OSError, ValueError) as problem:
        logger.info("each process notifies for itself: %s", problem)
        return Quiet(bytearray(Quiet.BYTES))


def _shared(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size < Quiet.BYTES:
            # Now: what a full disk has no room for would kill the process when it is written to memory.
            os.write(fd, bytes(Quiet.BYTES))
        return mmap.mmap(fd, Quiet.BYTES)
    finally:
        os.close(fd)
