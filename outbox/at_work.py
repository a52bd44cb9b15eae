"""What holds in a worker while a run is at work."""

from __future__ import annotations

from .contexts import Handling
from .crashes import crashes
from .runs import Run, current_run


class AtWork:
    """Makes a run, its event and its context current, and notes it in the journal.

    Of a pack, whose deliveries are each a run of its own, only the run is made current. It may be left twice.

    Args:
        alone: whether this thread has claimed its solitude among suspects, which ends with the run.
        around: what was at work when this began, as where tests run messages the moment they are sent.
    """

    # For each event, and so without generators and stacks, which take a few times as long.
    __slots__ = ("_alone", "_before", "_handling", "_note", "around", "run")

    def __init__(self, run: Run, *, alone: bool = False, around: AtWork | None = None) -> None:
        self.run = run
        self.around = around
        self._alone = alone
        self._before = current_run.get()
        self._note = None if run.packed else crashes.noting(run)
        self._handling = Handling(None if run.batched else run.event)

    def __enter__(self) -> None:
        try:
            if self._note is not None:
                self._note.__enter__()
            current_run.set(self.run)
            self._handling.__enter__()
        except BaseException:
            # A time limit or a shutdown may come at any moment.
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        # Each step, whatever interrupts the one before.
        try:
            self._handling.__exit__()
        finally:
            try:
                current_run.set(self._before)
            finally:
                try:
                    if self._note is not None:
                        self._note.__exit__()
                finally:
                    if self._alone:
                        crashes.end_solitude()
                        self._alone = False
