"""Waking the relay when a transaction that published has committed."""

from __future__ import annotations

import logging
import time
from functools import partial
from threading import Lock

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .conf import get_settings

CHANNEL = "outbox_wakeup"

# A process that has just notified need not do so again: a relay that was woken looks once more after
# this time. It keeps NOTIFY, which takes a lock shared by the whole cluster, off the path of busy writers.
QUIET_S = 0.05

logger = logging.getLogger(__name__)

_last_notified: dict[str, float] = {}
_lock = Lock()


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
    connection.on_commit(_Wake(wake, connection.alias), robust=True)


def wake(using: str, *, urgent: bool = False) -> None:
    """Tell the relays of a database that there is work, unless this process has just done so.

    Args:
        urgent: tell them in any case, for work that is better not found a little later.
    """
    if not (urgent or _is_due(using)) or connections[using].vendor != "postgresql":
        return
    try:
        with connections[using].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
    except DatabaseError:
        # The rows are committed; the relay finds them at its next poll.
        logger.warning("could not wake the relay of database %r", using, exc_info=True)


def _is_due(using: str) -> bool:
    now = time.monotonic()
    with _lock:
        if now - _last_notified.get(using, -QUIET_S) < QUIET_S:
            return False
        _last_notified[using] = now
        return True
