"""The base of the embedded servers: a process and its temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .guard import Guard
from .probes import ServiceError, wait_until

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class Server:
    """Own a server process and its temporary directory."""

    name: str

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._directory: Path | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """The temporary directory of the server; it exists from the first `start()` to `stop()`."""
        if self._directory is None:
            raise ServiceError(f"{self.name} was never started; call start() first")
        return self._directory

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while it is not running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def url(self) -> str:
        """The address for clients; it never changes."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start the server and return when it answers; a stopped server can be started again."""
        if self.pid is not None:
            return self
        try:
            if self._directory is None:
                self._prepare()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """Kill the server; `start()` restarts it with its data on disk."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server and delete its directory."""
        try:
            self._end(self._stop_signal())
        finally:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None
            if self._guard is not None:
                self._guard.dismiss()
                self._guard = None

    def _prepare(self) -> None:
        self._directory = _new_directory(f"outbox-{self.name}-")
        self._guard = Guard(self._directory)
        self._create()

    def _launch(self) -> None:
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                user=self._user(),
                # In a new session, so that Ctrl-C in the terminal reaches only the caller.
                start_new_session=True,
            )
        self._watch(self._process.pid)
        try:
            wait_until(self._ready, timeout_s=START_TIMEOUT_S, awaited=f"{self.name} to answer")
        except ServiceError as error:
            raise ServiceError(f"{error}\n{_tail(log)}") from None

    def _ready(self) -> bool:
        if self.pid is None:
            raise ServiceError(f"{self.name} ended while it was starting")
        return self._answers()

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(number)  # has no effect if the process has ended
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
        self._process = None
        self._watch(0)

    def _watch(self, pid: int) -> None:
        if self._guard is not None:
            self._guard.watch(pid)

    def _create(self) -> None:
        """Create the files that the server needs for its first start."""

    def _user(self) -> str | None:
        return None

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGTERM

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


def _new_directory(prefix: str) -> Path:
    """Make a temporary directory with a path short enough for a Unix socket (about 100 bytes in all)."""
    usual = tempfile.gettempdir()
    path = tempfile.mkdtemp(prefix=prefix, dir=usual if len(os.path.realpath(usual)) <= 60 else "/tmp")
    return Path(path).resolve()


def _tail(log: Path, lines: int = 20) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"
