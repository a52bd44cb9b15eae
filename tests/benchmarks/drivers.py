"""The measuring processes: one per way and broker, controlled over a pipe, each with its own database."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 60.0
# Longer than all timeouts inside a driver.
ANSWER_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0


class DriverError(Exception):
    """A way could not be measured."""


class Driver:
    """One measuring process; a context manager. The output of libraries goes to a file."""

    def __init__(self, python: str, module: str, *, env: Mapping[str, str]) -> None:
        self.module = module
        self.versions: dict[str, str] = {}
        self._tasks: set[str] = set()
        self._log = tempfile.NamedTemporaryFile(prefix="outbox-bench-", suffix=".log")  # noqa: SIM115  # for __exit__
        self._process = subprocess.Popen(
            [python, "-m", module],
            cwd=ROOT,
            env=_environment() | dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # A process group of its own, so that its workers always end with it.
            start_new_session=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Wait until the process is ready.

        Raises:
            DriverError: if it does not answer in time.
        """
        greeting = self._next(START_TIMEOUT_S)
        self.versions, self._tasks = greeting["versions"], set(greeting["tasks"])

    def ask(self, task: str, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
        """Run a task in the process.

        Raises:
            DriverError: with the reason.
        """
        assert self._process.stdin is not None
        if task not in self._tasks:
            raise DriverError(f"{self.module} has no task {task!r}")
        try:
            self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DriverError(f"the process has ended\n{self._tail()}") from error
        answer = self._next(timeout_s)
        if "error" in answer:
            raise DriverError(f"{answer['error']}\n{self._tail()}")
        return answer

    def close(self) -> None:
        """End the process, and kill its remaining children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(STOP_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._kill()
            self._reader.join(STOP_TIMEOUT_S)
            self._process.stdout.close()
            self._log.close()

    def _kill(self) -> None:
        # Its process id is also the id of its group, which may outlive it.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._process.wait(STOP_TIMEOUT_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._kill()
            raise DriverError(f"no answer within {timeout_s:g} s\n{self._tail()}") from None
        if not line:
            raise DriverError(
                f"the process ended with status {self._process.wait(STOP_TIMEOUT_S)}\n{self._tail()}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self, lines: int = 15) -> str:
        return "\n".join(Path(self._log.name).read_text(errors="replace").splitlines()[-lines:])


def _environment() -> dict[str, str]:
    # Variables of this process about Python or Django are not meant for the driver.
    unwanted = {"PYTHONPATH", "DJANGO_SETTINGS_MODULE", "PYTHONWARNINGS"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
