"""Several relay processes: started, started again when they die, and stopped together."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence

from .child import Child
from .lifeline import Lifeline
from .restarts import Restarts
from .signals import Signals

logger = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# When all have died so often without having been well in between, more starts mend nothing: the supervisor's
# own process manager is to know.
DEATHS_TO_GIVE_UP = 5

# What shells call a process that a signal has ended.
SIGNALLED = 128


class Supervisor:
    """Keeps so many processes of one command; it has neither threads nor connections.

    Args:
        restart: start again what has ended; otherwise each process may end by itself.
        make_restarts: makes what decides when one place among the processes is filled again.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        processes: int,
        restart: bool = True,
        make_restarts: Callable[[], Restarts] = Restarts,
    ) -> None:
        self._command = command
        self._processes = processes
        self._restart = restart
        self._make_restarts = make_restarts
        self._children: list[Child] = []
        self._stopping = False
        self._status = 0
        self._forced_status = 0

    def run(self) -> int:
        """Start the processes, and return the worst exit status when all have ended for good."""
        with Signals({*STOPS, signal.SIGCHLD}) as signals, Lifeline() as lifeline:
            self._children = self._make_children(lifeline)
            logger.info("supervising %d relay processes", self._processes)
            for child in self._children:
                self._start(child)
            while self._goes_on() or any(child.running for child in self._children):
                for number in signals.wait(self._due_in_s()):
                    self._heed(number)
                self._collect()
                self._start_due()
        return self._forced_status or self._status

    def _make_children(self, lifeline: Lifeline) -> list[Child]:
        return [
            Child(number, self._command, lifeline=lifeline, restarts=self._make_restarts())
            for number in range(1, self._processes + 1)
        ]

    def _goes_on(self) -> bool:
        return self._restart and not self._stopping

    def _due_in_s(self) -> float | None:
        """Return in how many seconds a process is to be started; None for never."""
        waits = [child.restarts.due_in_s() for child in self._children if not child.running]
        return min(waits) if waits and self._goes_on() else None

    def _start_due(self) -> None:
        for child in self._children:
            if self._goes_on() and not child.running and child.restarts.due_in_s() <= 0:
                self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as problem:
            self._note_end(child, os.EX_OSERR, f"could not start: {problem}")

    # ---------------------------------------------------------------- stopping

    def _heed(self, number: int) -> None:
        if number not in STOPS:
            return
        if not self._stopping:
            self._stop()
            logger.info("%s: the relay processes finish the batches in hand", signal.Signals(number).name)
        elif number != signal.SIGHUP:
            # A terminal that goes away, and some process managers, send SIGHUP on top of another signal.
            self._forced_status = SIGNALLED + number
            self._tell(signal.SIGKILL)

    def _stop(self) -> None:
        self._stopping = True
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for child in self._children:
            child.send_signal(number)

    # ---------------------------------------------------------------- ends

    def _collect(self) -> None:
        for child in self._children:
            code = child.look()
            if code is not None:
                self._note_end(child, code, _manner(code))

    def _note_end(self, child: Child, code: int, manner: str) -> None:
        name = str(child)
        child.leave()
        if self._goes_on():
            wait_s = child.restarts.note_death()
            logger.warning("%s %s; the next one starts in %.1f s", name, manner, wait_s)
            self._give_up_if_hopeless(code)
        elif code == 0 or (self._stopping and code == -signal.SIGTERM):
            # SIGTERM ends one that has only begun to start, and holds nothing yet.
            logger.info("%s ended", name)
        else:
            logger.error("%s %s", name, manner)
            self._status = max(self._status, _status(code))

    def _give_up_if_hopeless(self, code: int) -> None:
        deaths = [child.restarts.in_a_row(running=child.running) for child in self._children]
        if min(deaths) >= DEATHS_TO_GIVE_UP:
            logger.error("each relay process has died %d times in a row; giving up", DEATHS_TO_GIVE_UP)
            # Even one that ended with 0 was not to end.
            self._status = _status(code) or 1
            self._stop()


def _status(code: int) -> int:
    return code if code >= 0 else SIGNALLED - code


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"  # a real-time signal has no name
