"""What a worker process is running, kept where it outlives the process.

A file mapped into memory: to note a run is to write into the page cache, which takes microseconds and no
system call, and which a killed process leaves behind. The file is locked as long as the process lives, so
that whoever gets the lock knows that its writer has died.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

SUFFIX = ".journal"

# A run takes one slot, a large batch several; what finds none is not noted.
SLOTS = 256
SLOT_BYTES = 4096

# What nobody has read by then belongs to a site that is no more.
ORPHANED_AFTER_S = 7 * 24 * 3600

_COUNT = struct.Struct("<I")
_ALIAS = struct.Struct("<60s")
_HEAD_BYTES = _COUNT.size + _ALIAS.size
DELIVERIES_PER_SLOT = (SLOT_BYTES - _HEAD_BYTES) // 8
FILE_BYTES = SLOTS * SLOT_BYTES
_NOTHING = _COUNT.pack(0)

# A database alias and deliveries that were being run.
Noted = tuple[str, list[int]]


class Journal:
    """The journal of this process.

    Args:
        site: begins the file's name; only processes of the same site read it.

    Raises:
        OSError: if the file cannot be made.
    """

    def __init__(self, folder: Path, site: str) -> None:
        # Nobody looks at it before it is locked and has its name.
        self._fd, new = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # All of it now: what a full disk has no room for would kill the process when it is written.
            os.write(self._fd, bytes(FILE_BYTES))
            self._memory = mmap.mmap(self._fd, FILE_BYTES)
            self.path = folder / f"{site}-{os.getpid()}-{Path(new).name.removeprefix('.new-')}{SUFFIX}"
            os.rename(new, self.path)
        except BaseException:
            os.close(self._fd)
            os.unlink(new)
            raise
        # The one used last is taken first, so that few pages are touched.
        self._free = deque(range(FILE_BYTES - SLOT_BYTES, -1, -SLOT_BYTES))

    def noting(self, database: str, deliveries: Sequence[int]) -> Noting:
        """Keep a note while deliveries are run."""
        return Noting(self, database, deliveries)

    def note(self, database: str, deliveries: Sequence[int], slots: list[int]) -> None:
        """Note as many deliveries as a slot has room for, in one that is added to `slots` if there is any."""
        content = _ALIAS.pack(database.encode()) + struct.pack(f"<{len(deliveries)}q", *deliveries)
        try:
            # Known to be taken before anything is written: the thread may be interrupted at any moment.
            slots.append(slot := self._free.pop())
            start = slot + _COUNT.size
            self._memory[start : start + len(content)] = content
            # Last, as a slot without a count is not read.
            self._memory[slot:start] = _COUNT.pack(len(deliveries))
        except (IndexError, ValueError):
            return  # all are taken, or the file has been let go of

    def erase(self, slots: list[int]) -> None:
        """Forget what is noted in slots, and take them out of the list."""
        try:
            while slots:
                self._memory[slots[-1] : slots[-1] + _COUNT.size] = _NOTHING
                self._free.append(slots.pop())
        except ValueError:
            return  # the file has been let go of

    def remove(self) -> None:
        """Take the file away: whatever becomes of the runs under way, they do not count as crashes."""
        with suppress(OSError):
            self.path.unlink()
        self.forget()

    def forget(self) -> None:
        """Let go of the file, as a forked child must: with it, it would keep its parent's lock."""
        self._memory.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Noting:
    """Keeps a note of deliveries while they are run."""

    # A class of few words, as all that a worker does for each event: a generator takes three times as long.
    __slots__ = ("_database", "_deliveries", "_journal", "_slots")

    def __init__(self, journal: Journal, database: str, deliveries: Sequence[int]) -> None:
        self._journal = journal
        self._database = database
        self._deliveries = deliveries
        self._slots: list[int] = []

    def __enter__(self) -> None:
        for part in _parts(self._deliveries):
            self._journal.note(self._database, part, self._slots)

    def __exit__(self, *_: object) -> None:
        self._journal.erase(self._slots)


def _parts(deliveries: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(deliveries), DELIVERIES_PER_SLOT):
        yield deliveries[start : start + DELIVERIES_PER_SLOT]


def left_behind(folder: Path, site: str) -> Iterator[list[Noted]]:
    """Yield what each dead process of a site was running; remove its journal when asked for the next one."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # somebody else was faster
        try:
            own = path.name.startswith(f"{site}-")
            if (own or _is_orphaned(fd)) and _is_dead(fd):
                if own:
                    yield list(_read(fd))
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _is_orphaned(fd: int) -> bool:
    return os.fstat(fd).st_mtime < time.time() - ORPHANED_AFTER_S


def _is_dead(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    # Without a name it is one that somebody else has just read.
    return os.fstat(fd).st_nlink > 0


def _read(fd: int) -> Iterator[Noted]:
    content = os.pread(fd, FILE_BYTES, 0)
    for slot in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        (count,) = _COUNT.unpack_from(content, slot)
        (alias,) = _ALIAS.unpack_from(content, slot + _COUNT.size)
        if 0 < count <= DELIVERIES_PER_SLOT:
            deliveries = struct.unpack_from(f"<{count}q", content, slot + _HEAD_BYTES)
            yield alias.rstrip(b"\0").decode(errors="replace"), list(deliveries)
