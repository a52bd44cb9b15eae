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

from outbox.wakeup import CHANNEL, LATE, URGENT

from .deadlines import within
from .stopping import Stop

logger = logging.getLogger(__name__)

# A server, or what stands before it, may accept a connection and then say nothing.
CONNECT_TIMEOUT_S = 2.0

# Attempts to connect begin no sooner than this after one another, or than the relay polls if that is sooner.
# They keep the relay from its work: those that fail may take this share of its time.
RECONNECT_INTERVAL_S = 1.0
CONNECT_SHARE = 0.25


class Wakeup:
    """Wakes a relay when somebody has committed work, on a connection of its own.

    Args:
        poll_s: how long at most the relay waits before it looks by itself.

    Attributes:
        is_late: whether rows may have come that are before those that have been seen.
    """

    def __init__(self, *, database: str, listen: bool, stop: Stop, poll_s: float) -> None:
        self._database = database
        self.is_late = False
        self._listen = listen and connections[database].vendor == "postgresql"
        self._stop = stop
        self._interval_s = min(RECONNECT_INTERVAL_S, poll_s)
        self._wrapper: Any = None
        self._try_again_at = 0.0
        self._trouble = ""

    def wait(self, timeout_s: float, *, calm_until: float = 0.0) -> bool:
        """Wait for a notification, a stop, or the time to pass; return whether to look for work now.

        Args:
            calm_until: when, on the monotonic clock, more than what is urgent is worth a look.
        """
        self.is_late = False
        if self._wrapper is None:
            if self._is_time_to_connect() and self._connect():
                # Somebody may have notified while nobody listened, of rows that are late as well.
                self.is_late = True
                return True
            self._stop.wait(timeout_s)
            return False
        try:
            payloads = self._heard(timeout_s)
            while payloads and URGENT not in payloads and not self._stop.requested:
                left_s = calm_until - time.monotonic()
                if left_s <= 0:
                    break
                payloads |= self._heard(left_s)
        except (Error, OSError) as error:
            self._lost(error)
            return True
        self.is_late = LATE in payloads
        return bool(payloads)

    def _heard(self, timeout_s: float) -> set[str]:
        """Wait, and return what the notifications say that have come; an empty text for anything else."""
        listening = self._wrapper.connection
        if not self._stop.wait(timeout_s, also=(listening.fileno(),)):
            return set()
        # Finds out, too, that the connection is broken, if that is what came.
        with self._wrapper.wrap_database_errors:
            return {notification.payload for notification in listening.notifies(timeout=0)} or {""}

    def close(self) -> None:
        """Close the connection."""
        if self._wrapper is not None:
            with suppress(Error):
                self._wrapper.close()
            self._wrapper = None

    def _is_time_to_connect(self) -> bool:
        return self._listen and time.monotonic() >= self._try_again_at

    def _connect(self) -> bool:
        started = time.monotonic()
        wait_s = self._interval_s
        wrapper = connections[self._database].copy()
        # Another thread opens it.
        wrapper.inc_thread_sharing()
        # So that the thread ends, too.
        wrapper.settings_dict["OPTIONS"]["connect_timeout"] = ceil(CONNECT_TIMEOUT_S)
        try:
            within(CONNECT_TIMEOUT_S, partial(_listen, wrapper), undo=wrapper.close)
        except (Error, TimeoutError) as error:
            self._lost(error)
            wait_s = max(wait_s, (time.monotonic() - started) / CONNECT_SHARE)
        else:
            self._wrapper = wrapper
            self._trouble = ""
        self._try_again_at = started + wait_s
        return self._wrapper is not None

    def _lost(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            logger.warning("not listening to database %r, polling only: %s", self._database, error)
        self.close()


def _listen(wrapper: BaseDatabaseWrapper) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
