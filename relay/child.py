"""One of several relay processes, as its supervisor sees it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from .lifeline import Lifeline
from .restarts import Restarts


class Child:
    """One place among the processes, and the process that has it now."""

    def __init__(
        self, number: int, command: Sequence[str], *, lifeline: Lifeline, restarts: Restarts
    ) -> None:
        self.restarts = restarts
        self._number = number
        self._command = command
        self._lifeline = lifeline
        self._process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        pid = f" (pid {self._process.pid})" if self._process else ""
        return f"relay process {self._number}{pid}"

    @property
    def running(self) -> bool:
        """Return whether there is a process whose end has not been noted."""
        return self._process is not None

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: the system has no room for one more.
        """
        self.restarts.note_start()
        # Ctrl-C reaches the children as well, but is for the supervisor to hear. A process inherits what is
        # blocked, so that not even a starting one is torn down by it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command that this process was started with
                self._command,
                env=self._lifeline.environment,
                pass_fds=[self._lifeline.reader],
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def look(self) -> int | None:
        """Return the exit status if the process has ended, negative for a signal."""
        return self._process.poll() if self._process else None

    def leave(self) -> None:
        """Forget the process, which has ended."""
        self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; harmless when there is no process."""
        if self._process:
            self._process.send_signal(number)


def own_command() -> list[str]:
    """Return the command that starts this very program again, with its options."""
    command = [sys.executable, *sys.orig_argv[1:]]
    main = sys.modules["__main__"]
    position = len(command) - len(sys.argv)
    if main.__spec__ is None and position > 0 and command[position] == sys.argv[0]:
        # A script is named as seen from the directory of the start, which it may have left since.
        command[position] = getattr(main, "__file__", sys.argv[0])
    return command
