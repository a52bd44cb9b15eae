"""One of the relay processes of a supervisor."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from .parent_pipe import ParentPipe
from .restart_backoff import RestartBackoff


class Child:
    """A numbered relay process of the supervisor, through all its restarts."""

    def __init__(
        self, number: int, command: Sequence[str], *, parent_pipe: ParentPipe, backoff: RestartBackoff
    ) -> None:
        self.backoff = backoff
        self._number = number
        self._command = command
        self._parent_pipe = parent_pipe
        self._process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        pid = f" (pid {self._process.pid})" if self._process else ""
        return f"relay process {self._number}{pid}"

    @property
    def running(self) -> bool:
        """Whether there is a process whose end the supervisor has not handled."""
        return self._process is not None

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: if the system cannot start another process.
        """
        self.backoff.note_start()
        # The terminal sends Ctrl-C to the children too, but only the supervisor handles it. A process
        # inherits the blocked signals, so that SIGINT does not end a child that is still starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command that this process was started with
                self._command,
                env=self._parent_pipe.environment,
                pass_fds=[self._parent_pipe.reader],
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit status if the process has ended, negative for a signal."""
        return self._process.poll() if self._process else None

    def forget_process(self) -> None:
        """Forget the process, which has ended."""
        self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
        if self._process:
            self._process.send_signal(number)


def own_command() -> list[str]:
    """Return the command that starts this program again, with its options."""
    command = [sys.executable, *sys.orig_argv[1:]]
    main = sys.modules["__main__"]
    position = len(command) - len(sys.argv)
    if main.__spec__ is None and position > 0 and command[position] == sys.argv[0]:
        # The path of a script is relative to the directory at its start, and the script may have changed it.
        command[position] = getattr(main, "__file__", sys.argv[0])
    return command
