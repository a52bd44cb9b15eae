"""Child processes of a test, and waiting for a condition with a deadline."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

POLL_INTERVAL_S = 0.02


def wait_until(predicate: Callable[[], T], deadline_s: float = 30, what: str = "") -> T:
    """Poll `predicate` until its value is true; return the value, or fail with `what` at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            subject = what or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"waited {deadline_s:g} s for {subject}; last value: {value!r}")
        time.sleep(POLL_INTERVAL_S)
    return value


class Process:
    """A child process in its own process group, whose output goes to a file.

    At the end of its context, the process and its children are killed.
    """

    def __init__(self, *command: str, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.command: Sequence[str] = command
        self._env = dict(env)
        self._cwd = cwd
        # Closed by __exit__.
        self._output = tempfile.NamedTemporaryFile(prefix="outbox-process-", suffix=".log")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def manage(cls, *arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> Self:
        """Prepare `manage.py <arguments>` of the test project."""
        return cls(sys.executable, "-m", "tests.manage", *arguments, env=env, cwd=cwd)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            # pytest shows the standard error of a failed test.
            sys.stderr.write(f"--- {self} ---\n{self.output}\n")
        self._output.close()

    def __str__(self) -> str:
        return " ".join(Path(part).name if "/" in part else part for part in self.command)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._started.pid

    @property
    def output(self) -> str:
        """The standard output and standard error so far."""
        return Path(self._output.name).read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal, or None while the process runs."""
        process = self._started
        if process.returncode is not None:
            return process.returncode
        # WNOWAIT keeps the process id reserved until kill() has ended the whole group.
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def start(self) -> Self:
        """Start the process."""
        assert self._process is None, f"{self} was already started"
        self._process = subprocess.Popen(
            self.command,
            env=self._env,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # Its own group: kill() also ends its children, and Ctrl-C reaches only pytest.
            start_new_session=True,
        )
        return self

    def wait_for_line(self, pattern: str, deadline_s: float = 30) -> re.Match[str]:
        """Wait until a line of the output matches `pattern`."""
        compiled = re.compile(pattern, re.MULTILINE)

        def found() -> re.Match[str] | None:
            ended = self.returncode is not None
            match = compiled.search(self.output)
            if match is None and ended:
                raise AssertionError(f"{self} ended with {self.returncode} before it wrote {pattern!r}")
            return match

        match = wait_until(found, deadline_s, f"{self} to write {pattern!r}")
        assert match is not None
        return match

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, if it has not ended."""
        if self._started.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, as a process manager does."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its children, if it has not ended, and wait for it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def wait(self, deadline_s: float = 30) -> int:
        """Wait for the end of the process and return its exit status."""
        wait_until(lambda: self.returncode is not None, deadline_s, f"{self} to end")
        status = self.returncode
        assert status is not None
        return status

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self} was not started"
        return self._process
