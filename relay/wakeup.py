"""Waits for work: LISTEN on PostgreSQL, and polls everywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import ceil
from typing import Any

from django.db import Error, connections

from outbox.own_connection import own_copy
from outbox.publishing.notify import LATE, URGENT

from .deadlines import within
from .listening import RETRY_S, NotListening, listen
from .outage_log import OutageLog
from .stopping import Stop
from .waker import Waker

logger = logging.getLogger(__name__)

# A server, or a proxy in front of it, may accept a connection and then never answer.
CONNECT_TIMEOUT_S = 2.0

# The time between the starts of two attempts to connect, unless the relay polls more often. The relay does no
# other work during an attempt, so failed attempts may take this share of its time.
RECONNECT_INTERVAL_S = 1.0
CONNECT_SHARE = 0.25


class Wakeup:
    """Ends the waits of a relay at a notification of committed deliveries, or when `waker` wakes it.

    Args:
        poll_s: the longest wait of the relay without a notification.
        clock: returns monotonic seconds.

    Attributes:
        waker: ends a wait when maintenance has made deliveries due; opened by the relay.
        is_late: whether deliveries may be due that precede the positions of the scan cursors.
    """

    def __init__(
        self,
        *,
        database: str,
        listen: bool,
        stop: Stop,
        poll_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        reconnect_interval_s: float = RECONNECT_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waker = Waker()
        self.is_late = False
        self._database = database
        self._listen = listen and connections[database].vendor == "postgresql"
        self._stop = stop
        self._connect_timeout_s = connect_timeout_s
        self._interval_s = min(reconnect_interval_s, poll_s)
        self._clock = clock
        self._wrapper: Any = None
        self._connect_at = 0.0
        self._outage = OutageLog(
            logger,
            database,
            complaint="not listening to database %r, polling only: %s",
            recovery="listening to database %r again after %.1f s",
            clock=clock,
        )
        self._poll_s = poll_s

    def describe(self) -> str:
        """Return how the relay notices events, as far as its settings say."""
        if self._listen:
            return "listening"
        is_postgresql = connections[self._database].vendor == "postgresql"
        why = "LISTEN is off" if is_postgresql else "the database has no LISTEN"
        return f"polling every {self._poll_s:g} s, since {why}"

    def problems(self) -> list[dict[str, Any]]:
        """Return the problem that the relay polls although it is to listen, with the reason, if it has it."""
        polls = self._wrapper is None and self._outage.cause
        return [{"kind": "relay_polls", "cause": self._outage.cause}] if polls else []

    def wait(self, timeout_s: float, *, coalesce_until: float = 0.0) -> bool:
        """Wait for a notification, a stop, or the timeout; return whether to check for due deliveries now.

        Args:
            coalesce_until: until this time of the clock, only an urgent notification ends the wait.
        """
        self.is_late = False
        if self._wrapper is None:
            if self._is_time_to_connect() and self._connect():
                # A process may have notified before the connection existed, also of late commits.
                self.is_late = True
                return True
            self._stop.wait(timeout_s, also=self.waker.sources)
            return self._was_woken()
        try:
            payloads = self._receive(timeout_s)
            while payloads and URGENT not in payloads and not self._stop.requested:
                left_s = coalesce_until - self._clock()
                if left_s <= 0:
                    break
                payloads |= self._receive(left_s)
        except (Error, OSError) as error:
            self._disconnect(error)
            return True
        self.is_late = LATE in payloads
        return bool(payloads)

    def close(self) -> None:
        """Close the connection."""
        if self._wrapper is not None:
            with suppress(Error):
                self._wrapper.close()
            self._wrapper = None

    def _receive(self, timeout_s: float) -> set[str]:
        """Wait, and return the payloads of the notifications received; an empty text for any other data."""
        listening = self._wrapper.connection
        if not self._stop.wait(timeout_s, also=(listening.fileno(), *self.waker.sources)):
            return set()
        if self._was_woken():
            return {LATE, URGENT}
        # A broken connection is readable too, and raises here.
        with self._wrapper.wrap_database_errors:
            return {notification.payload for notification in listening.notifies(timeout=0)} or {""}

    def _was_woken(self) -> bool:
        # The scan cursor may have passed the deliveries before their transaction committed.
        self.is_late = self.waker.was_woken()
        return self.is_late

    def _is_time_to_connect(self) -> bool:
        return self._listen and self._clock() >= self._connect_at

    def _connect(self) -> bool:
        started = self._clock()
        wait_s = self._interval_s
        # The timeout ends the thread of an attempt that was abandoned.
        wrapper = own_copy(connections[self._database], connect_timeout_s=ceil(self._connect_timeout_s))
        # Another thread opens the connection.
        wrapper.inc_thread_sharing()
        try:
            within(self._connect_timeout_s, partial(listen, wrapper), undo=wrapper.close)
        except NotListening as error:
            self._disconnect(error)
            wait_s = RETRY_S
        except (Error, TimeoutError) as error:
            self._disconnect(error)
            wait_s = max(wait_s, (self._clock() - started) / CONNECT_SHARE)
        else:
            self._wrapper = wrapper
            self._outage.note_success()
        self._connect_at = started + wait_s
        return self._wrapper is not None

    def _disconnect(self, error: Exception) -> None:
        self._outage.note_failure(str(error))
        self.close()
