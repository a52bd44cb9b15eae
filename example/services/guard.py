"""Cleaning up after a process that can no longer do so itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DISMISS_TIMEOUT_S = 30.0


class Guard:
    """Clean up after this process when it could not do so itself, be it killed.

    A small process waits for the end of a pipe that only this process holds open; the system closes it
    whatever happens, and the guard then kills the server it was told of and deletes its directory.
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
    time.sleep(0.02)  # what the server left behind may still be writing
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
        """Name the server to kill; 0 when there is none."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid}\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """Let the guard end; server and directory are gone, so it finds nothing to do."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DISMISS_TIMEOUT_S)
