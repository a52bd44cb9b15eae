"""Notifications that wake the relay after the commit of a transaction that published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.conf import get_settings

from .notify_throttle import NotifyThrottle, throttle_for

CHANNEL = "outbox_wakeup"
# The payload of a notification that a busy relay must not put off.
URGENT: Final = "urgent"
# The payload for rows whose due time may be before rows that relays have already read.
LATE: Final = "late"
# A transaction commits late if it commits this long after its first publish.
LATE_S = 0.5

logger = logging.getLogger(__name__)


class _Hook(partial[None]):
    """The on_commit hook; its type shows whether a transaction has registered it."""


class Notifier:
    """Notifies the relays of a database of each commit; on a busy host, of some commits.

    Args:
        late_s: the time after its first publish from which on a transaction commits late.
        clock: returns seconds, on a clock that all processes of the host share.
        throttle: returns the throttle of a database alias.
    """

    def __init__(
        self,
        *,
        late_s: float = LATE_S,
        clock: Callable[[], float] = time.monotonic,
        throttle: Callable[[str], NotifyThrottle] = throttle_for,
    ) -> None:
        self._late_s = late_s
        self._clock = clock
        self._throttle = throttle

    def notify_on_commit(self, connection: BaseDatabaseWrapper) -> None:
        """Notify once, after the current transaction of a connection has committed."""
        if connection.vendor != "postgresql":
            return
        # A hook that is still listed will run: Django drops the hooks of a savepoint that is rolled back.
        if any(isinstance(hook[1], _Hook) for hook in connection.run_on_commit):
            return
        connection.on_commit(_Hook(self._committed, connection.alias, self._clock()), robust=True)

    def _committed(self, using: str, published_at: float) -> None:
        self.notify(using, payload=LATE if self._clock() - published_at >= self._late_s else "")

    def notify(self, using: str, *, payload: Literal["", "urgent", "late"] = "") -> None:
        """Notify now; without a payload, only if the throttle of the host allows it."""
        if connections[using].vendor != "postgresql":
            return
        if not (payload or self._throttle(using).allows(self._clock())):
            return
        try:
            with connections[using].cursor() as cursor:
                cursor.execute(f"NOTIFY {CHANNEL}, '{payload}'" if payload else f"NOTIFY {CHANNEL}")
        except DatabaseError:
            self._throttle(using).reset()
            # The rows are committed; the relay finds them at its next poll.
            extra = {"database": using}
            logger.warning("could not wake the relay of database %r", using, exc_info=True, extra=extra)


notifier = Notifier()


def wake_on_commit(using: str) -> None:
    """Wake the relay once, after the current transaction on `using` has committed, if `LISTEN` is on."""
    if get_settings().listen:
        wake_after(connections[using])


def wake_after(connection: BaseDatabaseWrapper) -> None:
    """Wake the relay once, after the current transaction of a connection has committed."""
    notifier.notify_on_commit(connection)


def wake(using: str, *, payload: Literal["", "urgent", "late"] = "") -> None:
    """Wake the relays of a database now.

    Args:
        using: the database alias.
        payload: `URGENT` or `LATE`, to notify even if the host is busy.
    """
    notifier.notify(using, payload=payload)
