"""A TCP proxy that loses connections or data when a test asks for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

POLL_INTERVAL_S = 0.02


class Proxy:
    """Forward bytes to a server, and freeze or cut connections on demand.

    Args:
        port: the server's port.
        host: the server's address, or the folder of a PostgreSQL server's Unix socket.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(POLL_INTERVAL_S)
        self._flowing = threading.Event()
        self._flowing.set()
        self._closing = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self.accepted = 0

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    @property
    def port(self) -> int:
        """The port to connect to."""
        port: int = self._listener.getsockname()[1]
        return port

    def freeze(self) -> None:
        """Forward nothing while connections stay open, as after a failure of the network."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward bytes again."""
        self._flowing.set()

    def cut(self) -> None:
        """Close all connections, as a server that restarts does."""
        for pair in self._pairs:
            for end in pair:
                _shut(end)
        self._pairs.clear()

    def inject(self, data: bytes) -> None:
        """Send `data` to the clients as if the server had."""
        for client, _ in self._pairs:
            with suppress(OSError):  # for connections that have ended
                client.sendall(data)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = self._connect()
            except OSError:
                # The server is down, so the client loses its connection.
                client.close()
                continue
            _without_delay(client)
            self.accepted += 1
            self._pairs.append((client, server))
            self._spawn(self._pump, client, server)
            self._spawn(self._pump, server, client)

    def _connect(self) -> socket.socket:
        host, port = self._upstream
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return _without_delay(socket.create_connection(self._upstream))

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(65536):
                    self._flowing.wait()
                    self._passes(source, data)
                    target.sendall(data)
                    self._passed(source)
            self._ends(target)

    def _passes(self, source: socket.socket, data: bytes) -> None:
        """Hook before bytes are forwarded."""

    def _passed(self, source: socket.socket) -> None:
        """Hook after bytes were forwarded."""

    def _ends(self, target: socket.socket) -> None:
        """Close one end after the other end has closed."""
        _shut(target)

    def _spawn(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()


class ThrottledProxy(Proxy):
    """Forward bytes as a slow link does.

    Args:
        bytes_per_s: the rate of each direction of each connection.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, bytes_per_s: float) -> None:
        super().__init__(port, host)
        self._bytes_per_s = bytes_per_s
        self._never = threading.Event()

    def _passes(self, source: socket.socket, data: bytes) -> None:
        self._never.wait(len(data) / self._bytes_per_s)


def _without_delay(end: socket.socket) -> socket.socket:
    """Send bytes at once, as clients and servers do, instead of up to 40 ms later."""
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
