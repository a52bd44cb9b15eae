"""The supervisor of several relay processes: it starts them, restarts them, and stops them together."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence

from outbox.posix import STOP_SIGNALS

from .child import Child
from .parent_pipe import ParentPipe
from .restart_backoff import RestartBackoff
from .signal_pipe import SignalPipe

logger = logging.getLogger(__name__)

# When every process has died this many times in a row, a restart does not help. The supervisor then ends, so
# that its own process manager notices.
DEATHS_TO_GIVE_UP = 5

# Shells add this to a signal's number, for the status of a process that the signal has ended.
SIGNALLED = 128


class Supervisor:
    """Keeps several processes of one command running; it has neither threads nor connections.

    Args:
        restart: restart a process that has ended; otherwise each process may end.
        make_backoff: makes the restart backoff of one child.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        processes: int,
        restart: bool = True,
        make_backoff: Callable[[], RestartBackoff] = RestartBackoff,
    ) -> None:
        self._command = command
        self._processes = processes
        self._restart = restart
        self._make_backoff = make_backoff
        self._children: list[Child] = []
        self._stopping = False
        self._status = 0
        self._forced_status = 0

    def run(self) -> int:
        """Start the processes, wait until all have ended for good, and return the worst exit status."""
        with SignalPipe({*STOP_SIGNALS, signal.SIGCHLD}) as signals, ParentPipe() as parent_pipe:
            self._children = self._make_children(parent_pipe)
            logger.info("supervising %d relay processes", self._processes)
            for child in self._children:
                self._start(child)
            while self._restarts() or any(child.running for child in self._children):
                for number in signals.wait(self._due_in_s()):
                    self._handle_signal(number)
                self._collect()
                self._start_due()
        return self._forced_status or self._status

    def _make_children(self, parent_pipe: ParentPipe) -> list[Child]:
        return [
            Child(number, self._command, parent_pipe=parent_pipe, backoff=self._make_backoff())
            for number in range(1, self._processes + 1)
        ]

    def _restarts(self) -> bool:
        return self._restart and not self._stopping

    def _due_in_s(self) -> float | None:
        """Return in how many seconds the next start of a process is due; None if none is planned."""
        waits = [child.backoff.due_in_s() for child in self._children if not child.running]
        return min(waits) if waits and self._restarts() else None

    def _start_due(self) -> None:
        for child in self._children:
            if self._restarts() and not child.running and child.backoff.due_in_s() <= 0:
                self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as problem:
            self._note_end(child, os.EX_OSERR, f"could not start: {problem}")

    # ---------------------------------------------------------------- stopping

    def _handle_signal(self, number: int) -> None:
        if number not in STOP_SIGNALS:
            return
        if not self._stopping:
            self._stop()
            logger.info("%s: the relay processes finish their current batches", signal.Signals(number).name)
        elif number != signal.SIGHUP:
            # A closed terminal and some process managers send SIGHUP in addition to another signal.
            self._forced_status = SIGNALLED + number
            self._send_to_all(signal.SIGKILL)

    def _stop(self) -> None:
        self._stopping = True
        self._send_to_all(signal.SIGTERM)

    def _send_to_all(self, number: signal.Signals) -> None:
        for child in self._children:
            child.send_signal(number)

    # ---------------------------------------------------------------- ends

    def _collect(self) -> None:
        for child in self._children:
            code = child.poll()
            if code is not None:
                self._note_end(child, code, _describe_exit(code))

    def _note_end(self, child: Child, code: int, description: str) -> None:
        name = str(child)
        child.forget_process()
        if self._restarts():
            wait_s = child.backoff.note_death()
            logger.warning("%s %s; the next one starts in %.1f s", name, description, wait_s)
            self._stop_if_all_keep_dying(code)
        elif code == 0 or (self._stopping and code == -signal.SIGTERM):
            # SIGTERM ends a process that is still starting, which has claimed nothing yet.
            logger.info("%s ended", name)
        else:
            logger.error("%s %s", name, description)
            self._status = max(self._status, _status(code))

    def _stop_if_all_keep_dying(self, code: int) -> None:
        deaths = [child.backoff.deaths_in_a_row(running=child.running) for child in self._children]
        if min(deaths) >= DEATHS_TO_GIVE_UP:
            logger.error("each relay process has died %d times in a row; giving up", DEATHS_TO_GIVE_UP)
            # A process that should not end has failed even if its status is 0.
            self._status = _status(code) or 1
            self._stop()


def _status(code: int) -> int:
    return code if code >= 0 else SIGNALLED - code


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"  # a real-time signal has no name
