"""The context of a run in a worker's thread."""

from __future__ import annotations

from outbox.contexts import Handling
from outbox.observability.tracing import Trace, tracers
from outbox.run import Run, current_run

from .poison import quarantine


class RunContext:
    """Makes a run, its event and its context current, and records it in the in-flight log.

    It may be left twice.

    Args:
        run: the run.
        alone: whether this thread has entered the quarantine, which it leaves with the run.
        outer: the thread's run context before, such as in tests that run messages when they are sent.
    """

    # One per event: generators and context stacks would take a few times as long.
    __slots__ = ("_alone", "_entry", "_handling", "_previous_run", "outer", "run")

    def __init__(self, run: Run, *, alone: bool = False, outer: RunContext | None = None) -> None:
        self.run = run
        self.outer = outer
        self._alone = alone
        self._previous_run = current_run.get()
        self._entry = quarantine.log_entry(run)
        self._handling = Handling(None if run.batched else run.event)

    def __enter__(self) -> None:
        try:
            if self._entry is not None:
                self._entry.__enter__()
            current_run.set(self.run)
            self._handling.__enter__()
            if tracers:
                self.run.trace = Trace("running", self.run)
                self.run.trace.__enter__()
        except BaseException:
            # A time limit or a shutdown may interrupt the thread at any moment.
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        # Each step runs even if an interrupt ends the step before.
        try:
            self.run.end_trace()
        finally:
            try:
                self._handling.__exit__()
            finally:
                try:
                    current_run.set(self._previous_run)
                finally:
                    self._leave_log()

    def _leave_log(self) -> None:
        try:
            if self._entry is not None:
                self._entry.__exit__()
        finally:
            if self._alone:
                quarantine.leave()
                self._alone = False
