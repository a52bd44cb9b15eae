"""A way to PostgreSQL on which connections that listen can die unnoticed."""

from __future__ import annotations

import socket

from psycopg.conninfo import conninfo_to_dict

from tests.proxy import Proxy


class DeafWay(Proxy):
    """Pass bytes on to a server's Unix socket, and make LISTEN connections half-open on demand."""

    def __init__(self, url: str) -> None:
        super().__init__(0)
        self._parts = conninfo_to_dict(url)
        self._asking: set[socket.socket] = set()
        self._listeners: set[socket.socket] = set()
        self._deaf: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """The URL to connect to."""
        return f"postgresql://{self._parts['user']}@127.0.0.1:{self.port}/{self._parts['dbname']}"

    def deafen(self) -> bool:
        """Let the server forget the connections that listen, and not tell; return whether there were any."""
        gone = [pair for pair in self._pairs if pair[0] in self._listeners]
        for client, server in gone:
            self._deaf.add(client)
            server.shutdown(socket.SHUT_RDWR)
        return bool(gone)

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._parts['host']}/.s.PGSQL.{self._parts.get('port', 5432)}")
        return server

    def _passes(self, source: socket.socket, data: bytes) -> None:
        if b"LISTEN " in data:
            self._asking.add(source)

    def _passed(self, source: socket.socket) -> None:
        # A client listens once it knows that it does: one that is still waiting for the answer hangs.
        self._listeners.update(
            client for client, server in self._pairs if server is source and client in self._asking
        )

    def _ends(self, target: socket.socket) -> None:
        if target not in self._deaf:
            super()._ends(target)
