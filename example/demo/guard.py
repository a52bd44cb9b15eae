"""Kill the processes of a demo that was killed and could not stop them.

The guard reads `+<group>` and `-<group>` from its standard input. Only the demo holds the other end of the
pipe, so the system closes the pipe when the demo ends. The guard then kills the remaining process groups.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


class Guard:
    """The demo's end of the pipe."""

    def __init__(self) -> None:
        """Start the guard in a new session, so that Ctrl-C does not reach it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "example.demo.guard"],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        """Have a process group killed if the demo ends without stopping it."""
        self._send(f"+{group}")

    def forget(self, group: int) -> None:
        """Never kill a process group: it has ended, and its id may be reused."""
        self._send(f"-{group}")

    def dismiss(self) -> None:
        """Let the guard end."""
        self._pipe.close()
        self._process.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _send(self, line: str) -> None:
        # The demo also works without its guard.
        with suppress(BrokenPipeError):
            self._pipe.write(f"{line}\n")
            self._pipe.flush()


def main(lines: Iterable[str]) -> None:
    """Read until the demo has ended, then kill the remaining process groups."""
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)
