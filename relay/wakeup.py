"""Waiting for work: LISTEN where the database has it, polling always."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from math import ceil
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.wakeup import CHANNEL

from .deadlines import within
from .stopping import Stop

logger = logging.getLogger(__name__)

RECONNECT_INTERVAL_S = 5.0

# A server, or what stands before it, may accept a connection and then say nothing.
CONNECT_TIMEOUT_S = 2.0


class Wakeup:
    """Wakes a relay when somebody has committed work, on a connection of its own."""

    def __init__(self, *, database: str, listen: bool, stop: Stop) -> None:
        self._database = database
        self._listen = listen and connections[database].vendor == "postgresql"
        self._stop = stop
        self._wrapper: Any = None
        self._try_again_at = 0.0

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notification, a stop, or the time to pass; return whether a notification came."""
        listening = self._connection()
        if listening is None:
            self._stop.wait(timeout_s)
            return False
        try:
            if not self._stop.wait(timeout_s, also=(listening.fileno(),)):
                return False
            # Reads what has come, and finds out that the connection is broken if that is what came.
            with self._wrapper.wrap_database_errors:
                for _notification in listening.notifies(timeout=0):
                    pass
        except (Error, OSError) as error:
            self._lost(error)
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._wrapper is not None:
            with suppress(Error):
                self._wrapper.close()
            self._wrapper = None

    def _connection(self) -> Any:
        if self._wrapper is None and self._listen and time.monotonic() >= self._try_again_at:
            self._connect()
        return self._wrapper.connection if self._wrapper is not None else None

    def _connect(self) -> None:
        wrapper = connections[self._database].copy()
        # Another thread opens it.
        wrapper.inc_thread_sharing()
        # So that the thread ends, too.
        wrapper.settings_dict["OPTIONS"]["connect_timeout"] = ceil(CONNECT_TIMEOUT_S)
        try:
            within(CONNECT_TIMEOUT_S, partial(_listen, wrapper), undo=wrapper.close)
        except (Error, TimeoutError) as error:
            self._lost(error)
        else:
            self._wrapper = wrapper

    def _lost(self, error: Exception) -> None:
        logger.warning("not listening to database %r, polling only: %s", self._database, error)
        self.close()
        self._try_again_at = time.monotonic() + RECONNECT_INTERVAL_S


def _listen(wrapper: BaseDatabaseWrapper) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
