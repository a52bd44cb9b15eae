"""What holds in a worker while a run is at work."""

from __future__ import annotations

from contextvars import Token

from .contexts import Handling
from .crashes import crashes
from .runs import Run, current_run


class AtWork:
    """Makes a run, its event and its context current, and notes it in the journal.

    Of a pack, whose deliveries are each a run of its own, only the run is made current.

    Args:
        alone: whether it has claimed its solitude among suspects, which ends with it.
    """

    # For each event, and so without generators and stacks, which take a few times as long.
    __slots__ = ("_alone", "_event", "_note", "_token", "run")

    def __init__(self, run: Run, *, alone: bool = False) -> None:
        self.run = run
        self._alone = alone
        self._token: Token[Run | None] | None = None
        self._note = None if run.packed else crashes.noting(run)
        self._event = None if run.batched else Handling(run.event)

    def __enter__(self) -> None:
        try:
            if self._note is not None:
                self._note.__enter__()
            self._token = current_run.set(self.run)
            if self._event is not None:
                self._event.__enter__()
        except BaseException:
            # A time limit or a shutdown may come at any moment.
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._event is not None:
            self._event.__exit__()
        if self._token is not None:
            current_run.reset(self._token)
        if self._note is not None:
            self._note.__exit__()
        if self._alone:
            crashes.end_solitude()
