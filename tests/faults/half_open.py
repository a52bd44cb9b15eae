"""A proxy for PostgreSQL that makes LISTEN connections half-open."""

from __future__ import annotations

import socket

from psycopg.conninfo import conninfo_to_dict

from tests.support.proxy import Proxy


class HalfOpenProxy(Proxy):
    """Pass bytes on to a server's Unix socket, and make LISTEN connections half-open on demand."""

    def __init__(self, url: str) -> None:
        super().__init__(0)
        self._parts = conninfo_to_dict(url)
        self._sent_listen: set[socket.socket] = set()
        self._listening: set[socket.socket] = set()
        self._half_open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """The URL to connect to."""
        return f"postgresql://{self._parts['user']}@127.0.0.1:{self.port}/{self._parts['dbname']}"

    def break_listeners(self) -> bool:
        """Close LISTEN connections at the server but not at the client; return whether there were any."""
        broken = [pair for pair in self._pairs if pair[0] in self._listening]
        for client, server in broken:
            self._half_open.add(client)
            server.shutdown(socket.SHUT_RDWR)
        return bool(broken)

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._parts['host']}/.s.PGSQL.{self._parts.get('port', 5432)}")
        return server

    def _passes(self, source: socket.socket, data: bytes) -> None:
        if b"LISTEN " in data:
            self._sent_listen.add(source)

    def _passed(self, source: socket.socket) -> None:
        # Only after the answer to LISTEN: a client that still waits for the answer would hang.
        self._listening.update(
            client for client, server in self._pairs if server is source and client in self._sent_listen
        )

    def _ends(self, target: socket.socket) -> None:
        if target not in self._half_open:
            super()._ends(target)
