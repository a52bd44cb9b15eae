"""Proxies of PostgreSQL: a plain one, and one that acts as a connection pooler in transaction mode does."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from psycopg.conninfo import conninfo_to_dict

from .proxy import Proxy

# Types of messages from PostgreSQL: https://www.postgresql.org/docs/current/protocol-message-formats.html
BACKEND_KEY, NOTIFICATION = b"K", b"A"
INVENTED_PROCESS_ID = 77


class PostgresProxy(Proxy):
    """Pass bytes on to the server of a database's URL."""

    def __init__(self, url: str) -> None:
        super().__init__(0)
        self._parts = conninfo_to_dict(url)

    @property
    def url(self) -> str:
        """The URL of the database behind the proxy; without encryption, so that tests can read the bytes."""
        user, name = self._parts["user"], self._parts["dbname"]
        password = f":{self._parts['password']}" if self._parts.get("password") else ""
        return (
            f"postgresql://{user}{password}@127.0.0.1:{self.port}/{name}?sslmode=disable&gssencmode=disable"
        )

    def _connect(self) -> socket.socket:
        host, port = str(self._parts.get("host") or "localhost"), int(self._parts.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


class TransactionPooler(PostgresProxy):
    """Invent the process id that clients see, and keep notifications back unless `passes_notifications`."""

    def __init__(self, url: str, *, passes_notifications: bool = False) -> None:
        super().__init__(url)
        self._passes_notifications = passes_notifications

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        if any(source is client for client, _server in self._pairs):
            super()._pump(source, target)
            return
        with source, suppress(OSError), source.makefile("rb") as messages:
            while head := messages.read(5):
                kind, (length,) = head[:1], struct.unpack("!I", head[1:])
                body = messages.read(length - 4)
                if kind == BACKEND_KEY:
                    body = struct.pack("!I", INVENTED_PROCESS_ID) + body[4:]
                if kind != NOTIFICATION or self._passes_notifications:
                    target.sendall(head + body)
        self._ends(target)
