"""Workers and relays that a measured process starts: their progress and their CPU time."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 20.0
PROC = Path("/proc")  # Linux only


class Tally:
    """Counts the events of a worker's handlers, and reports counts to the waiting process.

    BENCH_REPORT names a FIFO, and BENCH_MARKS the counts to write to it: "50,1050", or "all".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        marks = os.environ.get("BENCH_MARKS", "")
        self._all = marks == "all"
        self._marks = [int(mark) for mark in marks.split(",")] if marks and not self._all else []
        self._report = os.open(os.environ["BENCH_REPORT"], os.O_WRONLY) if marks else -1

    def hit(self, events: int = 1) -> None:
        """Count handled events."""
        now = time.monotonic_ns()
        with self._lock:
            self._count += events
            if self._all or (self._marks and self._count >= self._marks[0]):
                del self._marks[:1]
                # Short enough for one atomic write.
                os.write(self._report, f"{self._count} {now}\n".encode())


class Reports:
    """The reading end of the FIFO: waits until a worker has handled a number of events."""

    def __init__(self, marks: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="outbox-bench-")
        path = Path(self._folder.name) / "report"
        os.mkfifo(path)
        # Open in both directions, so that the FIFO never ends.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._buffer = b""
        self.env = {"BENCH_REPORT": str(path), "BENCH_MARKS": marks}

    def wait(self, timeout_s: float) -> tuple[int, float]:
        """Wait for the next report; return the count, and the time on the monotonic clock."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], (), (), left)[0]:
                raise TimeoutError(f"no worker reported within {timeout_s:g} s")
            self._buffer += os.read(self._descriptor, 65536)
        line, self._buffer = self._buffer.split(b"\n", 1)
        count, moment = line.split()
        return int(count), int(moment) / 1e9

    def close(self) -> None:
        """Remove the FIFO."""
        os.close(self._descriptor)
        self._folder.cleanup()


class Child:
    """A worker or a relay, with its own children."""

    def __init__(self, *command: str, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=os.environ | dict(env), stdin=subprocess.DEVNULL, stdout=sys.stderr
        )

    @property
    def cpu_s(self) -> float:
        """User and system time of the process and all its descendants; NaN without /proc."""
        return (
            sum(_cpu_s(pid) for pid in _family(self._process.pid)) if (PROC / "self").exists() else math.nan
        )

    def check(self) -> None:
        """Check that the process is running.

        Raises:
            RuntimeError: if the process has ended.
        """
        status = self._process.poll()
        if status is not None:
            raise RuntimeError(f"{self._process.args!r} ended with status {status}")

    def kill(self) -> None:
        """Kill the process and its family."""
        for pid in _family(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Terminate the process, and kill its family if it does not end in time."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def children(*commands: tuple[str, ...], env: Mapping[str, str]) -> Generator[list[Child]]:
    """Run processes while the block runs."""
    running: list[Child] = []
    try:
        for command in commands:
            running.append(Child(*command, env=env))
        yield running
    finally:
        for child in reversed(running):
            child.stop()


def _cpu_s(pid: int) -> float:
    try:
        # utime, stime, cutime and cstime stand after the name, which may contain any character.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * TICK_S


def _family(pid: int) -> list[int]:
    """Return a process and its living descendants."""
    parents: dict[int, int] = {}
    for entry in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found
