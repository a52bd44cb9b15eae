"""The marker in Redis: a key whose value names the server, besides the generation.

A server that starts with an old snapshot, or a replica that takes over, may have the key and lack messages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from dramatiq.brokers.redis import RedisBroker
from redis.exceptions import ResponseError

from outbox.brokers.redis_connection import Command

from .base import MAX_NAME_LENGTH, Marker, MarkerCheck


class RedisMarkerCheck(MarkerCheck):
    """The check of the marker in Redis."""

    def __init__(self, broker: RedisBroker) -> None:
        super().__init__()
        # Relays that reach one server by different addresses count its losses apart.
        digest = hashlib.sha256(address(broker).encode()).hexdigest()[:16]
        self._prefix = f"{broker.namespace}:__outbox_marker__.{digest}"
        self._run_id = ""

    def forget_server(self) -> None:
        """Read the server's run id again with the next check."""
        self._run_id = ""

    def commands(self) -> list[Command]:
        """Return the commands of the check, to send with others."""
        if self.expected is None:
            return []
        info = [] if self._run_id else [("INFO", "server")]
        return [*info, ("GET", self._key(self.expected))]

    def note(self, replies: Sequence[Any]) -> None:
        """Read the replies to the commands; an error proves nothing."""
        if self.expected is None or isinstance(replies[-1], ResponseError):
            return
        if len(replies) > 1:
            self._run_id = _run_id(replies[0])
        self.missing = _text(replies[-1]) != self._value(self.expected)

    def make(self, marker: Marker) -> Command:
        """Return the command that makes a marker, when the run id is known."""
        return ("SET", self._key(marker), self._value(marker))

    def _key(self, marker: Marker) -> str:
        return f"{self._prefix}.{marker.name}"

    def _value(self, marker: Marker) -> str:
        return f"{marker.generation} {self._run_id}"


def address(broker: RedisBroker) -> str:
    """Return the address of a broker's server and its namespace, for each way to connect."""
    pool = broker.client.connection_pool
    where = {key: pool.connection_kwargs.get(key) for key in ("host", "port", "path", "db")}
    where["service"] = getattr(pool, "service_name", None)
    parts = [f"{key}={value}" for key, value in where.items() if value is not None]
    return " ".join(["redis", *parts, f"namespace={broker.namespace}"])[:MAX_NAME_LENGTH]


def _run_id(info: Any) -> str:
    """Return the run id from the answer to INFO; a server may forbid the command, or be another product."""
    found = re.search(r"^run_id:(\w+)", "" if isinstance(info, ResponseError) else _text(info), re.MULTILINE)
    return found[1] if found else "unknown"


def _text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
