"""A small HTTP server for a process that is no web server: `/metrics`, `/live` and `/ready`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound

from outbox.endpoints import live, ready

from .views import metrics_view


class _Server(ThreadingMixIn, WSGIServer):
    # A scrape that waits for its database must not keep the process from ending.
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds for a client to send its request

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: monitors ask every few seconds."""


class MetricsServer:
    """Serves the endpoints from threads of its own, while its context is open.

    Args:
        host: the address to listen on.
        port: the port; 0 for a free one.

    Raises:
        OSError: if the address cannot be used.
    """

    def __init__(self, host: str, port: int) -> None:
        kind = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, _application, kind, _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="outbox-metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


_VIEWS: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "/metrics": metrics_view(),
    "/live": live,
    "/ready": ready,
}


def _application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    # Without a user, `ready` shows the verdict alone. No middleware of the project takes part.
    request = HttpRequest()
    request.method = environ["REQUEST_METHOD"]
    view = _VIEWS.get(environ["PATH_INFO"])
    try:
        response = HttpResponseNotFound() if view is None else view(request)
    finally:
        connections.close_all()
    start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
    return [b"" if request.method == "HEAD" else response.content]
