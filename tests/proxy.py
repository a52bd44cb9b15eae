"""A TCP proxy that misbehaves on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

POLL_INTERVAL_S = 0.02


class Proxy:
    """Pass bytes on to a server, until told to cut connections or to keep silent."""

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
        """Pass on nothing any more, while connections stay open, as after a failure of the network."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on everything again."""
        self._flowing.set()

    def cut(self) -> None:
        """End all connections, as a server that restarts does."""
        for pair in self._pairs:
            for end in pair:
                _shut(end)
        self._pairs.clear()

    def inject(self, data: bytes) -> None:
        """Send `data` to the clients as if the server had."""
        for client, _ in self._pairs:
            with suppress(OSError):  # of those that have ended
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
                # The server is down: whoever came is told so.
                client.close()
                continue
            _hurry(client)
            self.accepted += 1
            self._pairs.append((client, server))
            self._spawn(self._pump, client, server)
            self._spawn(self._pump, server, client)

    def _connect(self) -> socket.socket:
        return _hurry(socket.create_connection(self._upstream))

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
        """Look at what is about to be passed on."""

    def _passed(self, source: socket.socket) -> None:
        """Notice that something was passed on."""

    def _ends(self, target: socket.socket) -> None:
        """Tell one end that the other has gone."""
        _shut(target)

    def _spawn(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()


def _hurry(end: socket.socket) -> socket.socket:
    """Have what is sent leave at once, as clients and servers have it, instead of up to 40 ms later."""
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
