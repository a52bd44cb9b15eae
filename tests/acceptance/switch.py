"""A switch between clients and a broker that keeps running."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from tests.support.proxy import POLL_INTERVAL_S, Proxy


class Switch:
    """An address at which a broker answers, does not answer, or refuses connections."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._port = 0
        self._proxy: _ProxyAt | None = None

    def __enter__(self) -> Self:
        self.on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.off()

    @property
    def url(self) -> str:
        """The URL to connect to; it does not change."""
        login, at, _server = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{login}{at}127.0.0.1:{self._port}"))

    def on(self) -> None:
        """Connect clients to the broker."""
        self._proxy = _ProxyAt(self._parts.hostname or "127.0.0.1", self._parts.port or 5672, self._port)
        self._proxy.__enter__()
        self._port = self._proxy.port

    def freeze(self) -> None:
        """Keep connections open, but pass no bytes on."""
        assert self._proxy is not None
        self._proxy.freeze()

    def off(self) -> None:
        """End all connections and refuse new ones; bytes that were not passed on are lost."""
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.end()


class _ProxyAt(Proxy):
    """A proxy at a given port, or at any free port for 0."""

    def __init__(self, host: str, upstream_port: int, port: int) -> None:
        super().__init__(upstream_port, host)
        if port:
            self._listener.close()
            self._listener = socket.create_server(("127.0.0.1", port))
            self._listener.settimeout(POLL_INTERVAL_S)

    def end(self) -> None:
        """Refuse new connections, and then cut the existing ones."""
        self._closing = True
        # The first thread accepts connections. A connection that it accepts late would not be cut.
        self._threads[0].join()
        self.cut()
        self.__exit__(None, None, None)
