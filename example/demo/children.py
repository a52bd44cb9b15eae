"""The demo's processes: started one by one, monitored together, stopped in reverse order."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import DemoError
from .guard import ROOT, Guard

POLL_S = 0.1
START_S = 60.0
STOP_S = 20.0
TAIL_LINES = 25


class Child:
    """One process, whose output goes to a file."""

    def __init__(self, name: str, command: list[str], *, log: Path, env: Mapping[str, str]) -> None:
        """Start the process."""
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=dict(env),
                # Ctrl-C then reaches only the demo, which stops its processes in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Terminate the process; kill it and its children if it does not end in time."""
        if self.has_ended:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def wrote(self, text: str) -> bool:
        """Return whether the output contains `text`."""
        return text in self.log.read_text(errors="replace")

    def tail(self) -> str:
        """Return the last lines of the output."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"--- {self.name}, the end of {self.log}", *lines])


class Children:
    """All processes of the demo; a context manager that leaves none behind."""

    def __init__(self, *, logs: Path) -> None:
        """Keep the output of the processes in the directory `logs`."""
        self._logs = logs
        self._children: list[Child] = []
        self._guard = Guard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._children:
            child = self._children[-1]
            child.stop()
            self._guard.forget(child.pid)
            self._children.pop()
        self._guard.dismiss()

    def manage(self, name: str, *arguments: str, **env: str) -> Child:
        """Start `manage.py <arguments>`."""
        return self._start(name, [sys.executable, str(ROOT / "example" / "manage.py"), *arguments], env)

    def module(self, name: str, module: str, **env: str) -> Child:
        """Start `python -m <module>`."""
        return self._start(name, [sys.executable, "-m", module], env)

    def _start(self, name: str, command: list[str], env: Mapping[str, str]) -> Child:
        child = Child(name, command, log=self._logs / f"{name}.log", env={**os.environ, **env})
        self._children.append(child)
        self._guard.watch(child.pid)
        return child

    def wait_until(self, condition: Callable[[], bool], *, awaited: str, timeout_s: float = START_S) -> None:
        """Wait for a condition that the processes cause.

        Args:
            awaited: the condition in words, for the error.

        Raises:
            DemoError: if the condition is not met in time, or if a process ends.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"Waited {timeout_s:g} seconds for {awaited}; the logs may show the reason.")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Check that all processes run.

        Raises:
            DemoError: if a process has ended.
        """
        for child in self._children:
            if child.has_ended:
                raise DemoError(f"The process {child.name} ended unexpectedly.")

    def tails(self) -> str:
        """Return the last lines of every output."""
        return "\n".join(child.tail() for child in self._children)
