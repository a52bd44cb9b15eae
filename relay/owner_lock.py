"""The lock of a process that has messages in its memory: if the lock is free, the process is dead.

On PostgreSQL it is an advisory lock of a session, so it works between hosts. It needs a direct connection,
without a pooler. On SQLite it is a lock on a file, and one process at a time has the messages.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from django.db import Error, connections

from outbox.conf import get_settings
from outbox.host_folder import name_of, own_folder
from outbox.own_connection import own_copy

from .outage_log import OutageLog
from .stopping import Stop, start_without_signals

try:
    import fcntl
except ImportError:  # on Windows, where only one process may run
    HAS_FILE_LOCKS = False
else:
    HAS_FILE_LOCKS = True

logger = logging.getLogger(__name__)

FOLDER = "outbox-owners"

# How long an attempt to connect may take, and the pause before the next one.
CONNECT_TIMEOUT_S = 2
RETRY_S = 0.25
# A server that has vanished without a word is noticed after this time.
KEEPALIVE_S = 10.0
# How long the end of a process waits for the server. The server releases the lock of a process that is gone.
RELEASE_TIMEOUT_S = 2.0


class OwnedElsewhere(Exception):
    """Raised if another process has the messages of a SQLite database."""


class OwnerLock:
    """The lock of this process for one database; a context manager.

    Attributes:
        process_id: the id of the relay's heartbeat.
        number: the number that names this process in the rows of its deliveries, and its lock.

    Raises:
        OwnedElsewhere: when it is entered, if another process has the lock of a SQLite database.
    """

    def __init__(self, database: str) -> None:
        self.process_id = uuid4()
        self.number = number_of(self.process_id)
        self._database = database
        self._holder: _SessionLock | _FileLock | None = None

    def __enter__(self) -> Self:
        is_shared = connections[self._database].vendor == "postgresql"
        self._holder = _SessionLock(self._database, self.number) if is_shared else _FileLock(self._database)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._holder is not None:
            self._holder.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the lock is held; return whether it is."""
        return self._holder is not None and self._holder.wait(timeout_s)


def number_of(process_id: Any) -> int:
    """Return the number of the process with a heartbeat of this id: 63 of its random bits."""
    number: int = process_id.int >> 65
    return number


def is_free_here(database: str) -> bool:
    """Return whether no process of this host runs the handlers of a SQLite database."""
    try:
        _FileLock(database).release()
    except OwnedElsewhere:
        return False
    return True


class _FileLock:
    """A lock on a file, which the system releases when the process dies."""

    def __init__(self, database: str) -> None:
        self._fd = -1
        if not HAS_FILE_LOCKS:
            return
        path = Path(own_folder(get_settings().crash_dir, FOLDER)) / f"{name_of(database)}.owner"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise OwnedElsewhere(f"another process runs the handlers of database {database!r}") from None

    def wait(self, timeout_s: float) -> bool:
        """Return True: a process that has got the lock keeps it."""
        return True

    def release(self) -> None:
        """Release the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _SessionLock:
    """An advisory lock of a session, which a thread takes again as soon as the session was lost."""

    def __init__(self, database: str, number: int) -> None:
        self._database = database
        self._number = number
        self._held = threading.Event()
        self._closing = Stop()
        self._outage = OutageLog(
            logger,
            database,
            complaint="lost the lock of this process in database %r: %s",
            recovery="has the lock of this process in database %r again after %.1f s",
        )
        self._thread = threading.Thread(target=self._run, name=f"outbox-owner-{database}", daemon=True)
        start_without_signals(self._thread)

    def wait(self, timeout_s: float) -> bool:
        """Wait until the lock is held; return whether it is."""
        return self._held.wait(timeout_s)

    def release(self) -> None:
        """Release the lock, and end the thread, unless a server that does not answer keeps it."""
        self._closing.request()
        self._thread.join(RELEASE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._closing.__exit__()

    def _run(self) -> None:
        while not self._closing.requested:
            wrapper = own_copy(connections[self._database], connect_timeout_s=CONNECT_TIMEOUT_S)
            try:
                self._hold(wrapper)
            except Exception as error:  # no error may end the thread: the relay would never claim again
                self._outage.note_failure(str(error).strip())
            finally:
                self._held.clear()
                with suppress(Error):
                    wrapper.close()
            self._closing.wait(RETRY_S)

    def _hold(self, wrapper: Any) -> None:
        """Take the lock, and return when a release is requested.

        Raises:
            Error: if the session is lost.
        """
        with wrapper.cursor() as cursor:
            # A check by another process has the lock for a moment, so this waits.
            cursor.execute("SELECT pg_advisory_lock(%s), pg_backend_pid()", [self._number])
            _lock, pid = cursor.fetchone()
        # A pooler invents the number that a client sees, and may give the session with the lock to others.
        if pid != wrapper.connection.info.backend_pid:
            _execute(wrapper, "SELECT pg_advisory_unlock_all()")
            raise OSError("a connection pooler shares the sessions of the server; use a direct connection")
        self._outage.note_success()
        self._held.set()
        while not self._closing.requested:
            # A lost session makes the descriptor readable, and the statement raises.
            self._closing.wait(KEEPALIVE_S, also=(wrapper.connection.fileno(),))
            _execute(wrapper, "SELECT 1")
        # The server would notice the end of the session a moment later.
        _execute(wrapper, "SELECT pg_advisory_unlock(%s)", [self._number])


def _execute(wrapper: Any, statement: str, parameters: list[Any] | None = None) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(statement, parameters)
