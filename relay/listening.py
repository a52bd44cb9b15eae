"""LISTEN, and the proof that the session hears notifications: behind some connection poolers it does not."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

from django.db import Error

from outbox.own_connection import own_copy
from outbox.publishing.notify import CHANNEL

# How long a notification may take from one connection of this process to another.
HEARING_TIMEOUT_S = 0.5

# A project has a pooler for longer than a moment, so the relay rarely tries again.
RETRY_S = 60.0

CHANNELS = "SELECT pg_backend_pid(), ARRAY(SELECT pg_listening_channels())"


class NotListening(Exception):
    """Raised if the server sends no notifications over a connection."""


def listen(wrapper: Any, *, hearing_timeout_s: float = HEARING_TIMEOUT_S) -> None:
    """Listen for notifications on a connection of its own, and close the connection if that fails.

    Raises:
        NotListening: behind a pooler that gives each transaction another session of the server.
    """
    try:
        _listen(wrapper, hearing_timeout_s)
    except Exception:
        with suppress(Error):
            wrapper.close()
        raise


def _listen(wrapper: Any, hearing_timeout_s: float) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
        cursor.execute(CHANNELS)
        pid, channels = cursor.fetchone()
        # Again, as pg_stat_activity shows the last statement of the session.
        cursor.execute(f"LISTEN {CHANNEL}")
    # A pooler invents the process id that the client sees, because a cancellation goes to the pooler. It may
    # have used the same session for both statements, so the channels alone prove nothing.
    is_direct = pid == wrapper.connection.info.backend_pid
    if CHANNEL in channels and (is_direct or _hears(wrapper, hearing_timeout_s)):
        return
    with suppress(Error), wrapper.cursor() as cursor:
        cursor.execute(f"UNLISTEN {CHANNEL}")
    raise NotListening(
        "a connection pooler shares the sessions of the server, so LISTEN has no effect; give the relay a "
        "direct connection or a pooler in session mode, or set OUTBOX['LISTEN'] = False"
    )


def _hears(wrapper: Any, timeout_s: float) -> bool:
    """Notify over another connection, and return whether the notification arrives."""
    with closing(own_copy(wrapper)) as other, other.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")
    return any(True for _ in wrapper.connection.notifies(timeout=timeout_s, stop_after=1))
