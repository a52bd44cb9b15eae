"""Sends that background receivers could not record: reported even if the sender never sees the error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.dispatch import Signal

from outbox.conf import get_settings
from outbox.observability.telemetry import send_refused
from outbox.publishing.own_transaction import has_own_transaction


def report_refusal(topic: str, handlers: Sequence[str], exception: Exception, using: Any) -> None:
    """Report a refused send, because `send_robust()` hides its error.

    With `STRICT_SENDS` the transaction of the sender is marked for rollback.
    """
    database = using or DEFAULT_DB_ALIAS
    send_refused.send_robust(
        Signal,
        database=database,
        topic=topic,
        handlers=list(handlers),
        error=f"{type(exception).__name__}: {exception}",
    )
    known = database in list(connections)
    if known and get_settings().strict_sends and has_own_transaction(connections[database]):
        transaction.set_rollback(True, using=database)
