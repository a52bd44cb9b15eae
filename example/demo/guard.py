"""Kill the demo's processes when the demo was killed itself and could not stop them.

Reads `+<group>` and `-<group>` from its standard input. The pipe's other end is in the demo alone, so that
the system closes it however the demo ends; process groups that are still named then are killed.
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
        """Start the guard, in a session of its own, where no Ctrl-C reaches it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "example.demo.guard"],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        """Have a process group killed should the demo end without stopping it."""
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        """Leave a process group alone: it has ended, and its number may go to another."""
        self._tell(f"-{group}")

    def dismiss(self) -> None:
        """Let the guard end."""
        self._pipe.close()
        self._process.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _tell(self, line: str) -> None:
        # Without its guard the demo still works.
        with suppress(BrokenPipeError):
            self._pipe.write(f"{line}\n")
            self._pipe.flush()


def main(lines: Iterable[str]) -> None:
    """Read until the demo has ended, then kill what it left behind."""
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
