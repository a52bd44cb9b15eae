"""The telemetry of a relay process: its start, its troubles, their ends, and its stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal

from outbox.observability.telemetry import relay_in_trouble, relay_recovered, relay_started, relay_stopped
from outbox.process_fields import process_fields
from outbox.registry import registry

from .relay_options import RelayOptions


class StateReport:
    """Sends the signals about one relay."""

    def __init__(self, options: RelayOptions) -> None:
        self._options = options
        self._trouble_since: float | None = None

    def started(self, *, brokers: Sequence[str], wakeup: str) -> None:
        """Report that the relay begins.

        Args:
            brokers: their addresses without passwords, or their classes.
            wakeup: how the relay notices events.
        """
        server = server_name(connections[self._options.database])
        handlers = len(registry.handlers)
        self._send(relay_started, server=server, brokers=list(brokers), handler_count=handlers, wakeup=wakeup)

    def stopped(self) -> None:
        """Report that the relay has ended."""
        self._send(relay_stopped)

    def changed(self, state: str, detail: str) -> None:
        """Report a new state, or another cause of the same state."""
        database, now = self._options.database, self._options.clock()
        since = now if self._trouble_since is None else self._trouble_since
        if state == "running":
            self._trouble_since = None
            relay_recovered.send_robust(StateReport, database=database, state=state, duration_s=now - since)
        else:
            self._trouble_since = since
            relay_in_trouble.send_robust(StateReport, database=database, state=state, error=detail)

    def _send(self, signal: Signal, **fields: Any) -> None:
        queues = list(self._options.queues)
        signal.send_robust(
            StateReport, database=self._options.database, queues=queues, **process_fields(), **fields
        )


def server_name(connection: BaseDatabaseWrapper) -> str:
    """Return the name of a database, and of its server."""
    settings = connection.settings_dict
    host, port = settings.get("HOST"), settings.get("PORT")
    where = f" on {host}{f':{port}' if port else ''}" if host else ""
    return f"{connection.vendor} {settings['NAME']}{where}"
