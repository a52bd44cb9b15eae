"""Clean up after a process that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DISMISS_TIMEOUT_S = 30.0


class Guard:
    """Clean up after this process if it is killed.

    A small process waits for the end of a pipe that only this process holds open. The system closes the pipe
    when this process ends. The guard then kills the watched server and deletes its directory.
    """

    _script = """
import os, shutil, signal, sys, time
pid = 0
for line in sys.stdin:
    pid = int(line)
if pid:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
deadline = time.monotonic() + 30
while os.path.exists(sys.argv[1]) and time.monotonic() < deadline:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.02)  # backends of the server may still write
"""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self._script, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            text=True,
        )

    def watch(self, pid: int) -> None:
        """Watch a server by its process id; 0 for none."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid}\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """End the guard after the server and its directory were removed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DISMISS_TIMEOUT_S)
