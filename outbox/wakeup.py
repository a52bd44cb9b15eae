"""Waking the relay when a transaction that published has committed."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Final, Literal

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .conf import get_settings
from .quiet import quiet_of

CHANNEL = "outbox_wakeup"
# What a notification says that a busy relay is not to put off.
URGENT: Final = "urgent"
# What one says of rows that may be due since before those that relays have seen.
LATE: Final = "late"
# A transaction that goes on for so long after its first publish commits late.
LATE_S = 0.5

# A process that has just notified need not do so again: a relay that was woken looks once more after
# this time. It keeps NOTIFY, which takes a lock shared by the whole cluster, off the path of busy writers.
QUIET_S = 0.05

# A host may have a hundred processes, none of which is busy by itself. What another one has notified of
# counts for a shorter time, so that on a host that is not busy few have to wait for the second look; once
# several had to, it counts as long as a process's own.
HOST_QUIET_S = 0.01

logger = logging.getLogger(__name__)

_last_notified: dict[str, float] = {}


class _Wake(partial[None]):
    """The hook; a type of its own, so that one transaction registers it once."""


def wake_on_commit(using: str) -> None:
    """Wake the relay once, after the current transaction on `using` has committed."""
    if get_settings().listen:
        wake_after(connections[using])


def wake_after(connection: BaseDatabaseWrapper) -> None:
    """Do as `wake_on_commit`, whatever the settings say of it."""
    if connection.vendor != "postgresql":
        return
    # A hook that is still listed will run: Django drops those of a savepoint that is rolled back.
    if any(isinstance(hook[1], _Wake) for hook in connection.run_on_commit):
        return
    connection.on_commit(_Wake(_committed, connection.alias, time.monotonic()), robust=True)


def _committed(using: str, published_at: float) -> None:
    wake(using, saying=LATE if time.monotonic() - published_at >= LATE_S else "")


def wake(using: str, *, saying: Literal["", "urgent", "late"] = "") -> None:
    """Tell the relays of a database that there is work, unless this process has just done so.

    Args:
        saying: `URGENT` or `LATE`, to tell them in any case.
    """
    if not (saying or _is_due(using)) or connections[using].vendor != "postgresql":
        return
    try:
        with connections[using].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}, '{saying}'" if saying else f"NOTIFY {CHANNEL}")
    except DatabaseError:
        _last_notified.pop(using, None)
        quiet_of(using).end()
        # The rows are committed; the relay finds them at its next poll.
        logger.warning("could not wake the relay of database %r", using, exc_info=True)


def _is_due(using: str) -> bool:
    now = time.monotonic()
    # Threads that look at the same moment may both notify, which does no harm.
    if now - _last_notified.get(using, -QUIET_S) < QUIET_S:
        return False
    if not quiet_of(using).is_over(now, HOST_QUIET_S, busy_s=QUIET_S):
        return False
    _last_notified[using] = now
    return True
