"""How often the processes of a host notify, in a file that all processes of a user map into their memory.

A check costs no system call. Nothing is locked: two processes that check at the same moment may both notify,
which is harmless. If the host has no such file, each process throttles only its own notifications.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

from outbox.host_folder import name_of, own_folder

FOLDER = "outbox-wakeup"

logger = logging.getLogger(__name__)

# A token bucket of commits: the time and the tokens of the last commit, the time of the last notification,
# and whether the host is busy.
_STATE = struct.Struct("=dddI")

# A host is busy when it has committed more than RATE transactions a second, after a burst of CAPACITY. NOTIFY
# takes a lock that the whole cluster shares, so a busy host notifies only every BUSY_GAP_S. It stays busy
# until half of its tokens are back.
RATE = 250.0
CAPACITY = 20.0
BUSY_GAP_S = 0.05

# A process may be interrupted this long between the reading of its clock and its write.
CLOCK_MARGIN_S = 60.0


class NotifyThrottle:
    """Limits the notifications of all processes of a host.

    Args:
        memory: `BYTES` bytes that the processes share, all zero at first.
    """

    BYTES = _STATE.size

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def allows(self, now: float) -> bool:
        """Count a commit, and return whether to notify of it.

        Args:
            now: seconds on a clock that all processes of the host share.
        """
        updated, tokens, notified, busy = _STATE.unpack_from(self._memory)
        if not updated or updated > now + CLOCK_MARGIN_S:
            # The first commit, or the first since a boot of the host, at which the clock starts anew.
            updated, tokens, notified, busy = now, CAPACITY, now - BUSY_GAP_S, 0
        # Another process may have read its clock later, and written its commit earlier.
        now = max(now, updated)
        tokens = max(0.0, min(CAPACITY, tokens + (now - updated) * RATE) - 1)
        busy = 1 if tokens < 1 else busy and tokens < CAPACITY / 2
        allowed = not busy or now - notified >= BUSY_GAP_S
        self._write(now, tokens, now if allowed else notified, busy)
        return allowed

    def reset(self) -> None:
        """Forget the last notification, because it failed."""
        self._write(0.0, 0.0, 0.0, 0)

    def _write(self, *state: float) -> None:
        # Not by pack_into(), which first fills the memory with zeros: another process might read these.
        self._memory[: self.BYTES] = _STATE.pack(*state)


@cache
def throttle_for(database: str) -> NotifyThrottle:
    """Return the throttle that the processes of the host share for a database."""
    try:
        return NotifyThrottle(_shared(own_folder("", FOLDER) / name_of(database)))
    except (OSError, ValueError) as problem:
        logger.info("each process throttles only its own notifications: %s", problem)
        return NotifyThrottle(bytearray(NotifyThrottle.BYTES))


def _shared(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size < NotifyThrottle.BYTES:
            # Write now: if the disk is full, a later write to the mapped memory would kill the process.
            os.write(fd, bytes(NotifyThrottle.BYTES))
        return mmap.mmap(fd, NotifyThrottle.BYTES)
    finally:
        os.close(fd)
