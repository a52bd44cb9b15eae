"""The in-flight log: a file in which a worker process records the deliveries that it runs.

The file is mapped into memory. A record is a write into the page cache: it takes microseconds and no system
call, and survives the process. The process holds a lock on the file as long as it lives. Another process that
gets the lock therefore knows that the writer is dead.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from outbox.events import DeliveryRef

try:
    import fcntl
except ImportError:  # on Windows
    HAS_FILE_LOCKS = False
else:
    HAS_FILE_LOCKS = True

SUFFIX = ".inflight"

# A run takes one slot, a large batch several. A run that finds no free slot is not recorded.
SLOTS = 256
SLOT_BYTES = 4096

# A file of this age belongs to a site that no longer exists.
ORPHANED_AFTER_S = 7 * 24 * 3600

_COUNT = struct.Struct("<I")
_ALIAS = struct.Struct("<60s")
_HEAD_BYTES = _COUNT.size + _ALIAS.size
_DELIVERY = struct.Struct("<q16s")
DELIVERIES_PER_SLOT = (SLOT_BYTES - _HEAD_BYTES) // _DELIVERY.size
FILE_BYTES = SLOTS * SLOT_BYTES
_NO_DELIVERIES = _COUNT.pack(0)

# A database alias and the deliveries.
InflightRun = tuple[str, list[DeliveryRef]]


class InflightLog:
    """The in-flight log of this process.

    Args:
        folder: the folder that the worker processes of a host share.
        site: the start of the file's name; only processes of the same site read the file.

    Raises:
        OSError: if the file cannot be created.
    """

    def __init__(self, folder: Path, site: str) -> None:
        # Readers skip the file until it is locked and has its final name.
        self._fd, new = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # The whole file is allocated now: on a full disk, a later write to it would kill the process.
            os.write(self._fd, bytes(FILE_BYTES))
            self._memory = mmap.mmap(self._fd, FILE_BYTES)
            self.path = folder / f"{site}-{os.getpid()}-{Path(new).name.removeprefix('.new-')}{SUFFIX}"
            os.rename(new, self.path)
        except BaseException:
            os.close(self._fd)
            os.unlink(new)
            raise
        # The slot that was freed last is used first, so that few pages are touched.
        self._free = deque(range(FILE_BYTES - SLOT_BYTES, -1, -SLOT_BYTES))

    @property
    def free_slots(self) -> int:
        """Return the number of free slots."""
        return len(self._free)

    def entry(self, database: str, deliveries: Sequence[DeliveryRef]) -> InflightEntry:
        """Return a context manager that records deliveries while they run."""
        return InflightEntry(self, database, deliveries)

    def write(self, database: str, deliveries: Sequence[DeliveryRef], slots: list[int]) -> None:
        """Record deliveries in a free slot, if there is one, and append the slot to `slots`.

        Args:
            database: the alias of their database.
            deliveries: at most `DELIVERIES_PER_SLOT` deliveries.
            slots: the slots of the entry.
        """
        alias = _ALIAS.pack(database.encode())
        if len(deliveries) == 1:  # nearly always
            content = alias + _packed(deliveries[0])
        else:
            content = alias + b"".join(map(_packed, deliveries))
        try:
            # The entry owns the slot before the write, since an interrupt may come at any moment.
            slots.append(slot := self._free.pop())
            start = slot + _COUNT.size
            self._memory[start : start + len(content)] = content
            # The count comes last, as readers skip a slot without a count.
            self._memory[slot:start] = _COUNT.pack(len(deliveries))
        except (IndexError, ValueError):
            return  # no slot is free, or the file is closed

    def clear(self, slots: list[int]) -> None:
        """Clear slots, and remove them from the list."""
        try:
            while slots:
                self._memory[slots[-1] : slots[-1] + _COUNT.size] = _NO_DELIVERIES
                self._free.append(slots.pop())
        except ValueError:
            return  # the file is closed

    def read(self) -> list[InflightRun]:
        """Return the runs that the log contains now."""
        return list(_parse(bytes(self._memory)))

    def delete(self) -> None:
        """Delete the file, so that unfinished runs do not count as crashes."""
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file without deleting it, so that a forked child does not hold its parent's lock."""
        self._memory.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class InflightEntry:
    """Records deliveries in the in-flight log while they run."""

    # A class and no generator, which takes three times as long: a worker makes an entry for each event.
    __slots__ = ("_database", "_deliveries", "_inflight_log", "_slots")

    def __init__(self, inflight_log: InflightLog, database: str, deliveries: Sequence[DeliveryRef]) -> None:
        self._inflight_log = inflight_log
        self._database = database
        self._deliveries = deliveries
        self._slots: list[int] = []

    def __enter__(self) -> None:
        for start in range(0, len(self._deliveries), DELIVERIES_PER_SLOT):
            part = self._deliveries[start : start + DELIVERIES_PER_SLOT]
            self._inflight_log.write(self._database, part, self._slots)

    def __exit__(self, *_: object) -> None:
        self._inflight_log.clear(self._slots)


def abandoned_runs(folder: Path, site: str) -> Iterator[list[InflightRun]]:
    """Yield the runs of each dead process of a site; delete its file when the next one is requested."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # another process has deleted the file
        try:
            own = path.name.startswith(f"{site}-")
            if (own or _is_orphaned(fd)) and _is_abandoned(fd):
                if own:
                    yield list(_parse(os.pread(fd, FILE_BYTES, 0)))
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _is_orphaned(fd: int) -> bool:
    return os.fstat(fd).st_mtime < time.time() - ORPHANED_AFTER_S


def _is_abandoned(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    # Another process that has read the file deletes its name before it releases the lock.
    return os.fstat(fd).st_nlink > 0


def _parse(content: bytes) -> Iterator[InflightRun]:
    for slot in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        (count,) = _COUNT.unpack_from(content, slot)
        (alias,) = _ALIAS.unpack_from(content, slot + _COUNT.size)
        if 0 < count <= DELIVERIES_PER_SLOT:
            start = slot + _HEAD_BYTES
            pairs = _DELIVERY.iter_unpack(content[start : start + count * _DELIVERY.size])
            deliveries = [DeliveryRef(one, str(UUID(bytes=event))) for one, event in pairs]
            yield alias.rstrip(b"\0").decode(errors="replace"), deliveries


def _packed(delivery: DeliveryRef) -> bytes:
    # A UUID object would take five times as long.
    return _DELIVERY.pack(delivery.id, bytes.fromhex(delivery.event_id.replace("-", "")))
