"""What became of one run of a delivery."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from .models import Delivery, storable
from .runs import Run

# As text: the members of an enumeration take several times as long to compare.
_Status = Delivery.Status
_PENDING = str(_Status.PENDING)
_DISPATCHED = str(_Status.DISPATCHED)
_SUCCEEDED = str(_Status.SUCCEEDED)
_FAILED = str(_Status.FAILED)
_DISCARDED = str(_Status.DISCARDED)
_OPEN = frozenset({_PENDING, _DISPATCHED})
_NO_WAIT = timedelta()


# A tuple, since a worker makes one for each event: a frozen dataclass takes five times as long.
class Outcome(NamedTuple):
    """What became of one run of a delivery.

    Args:
        status: the state to record; empty if that is done already.
        verdict: the column of the statistics it counts in; empty for a message that did not run.
        lane: the key by which the handler is ordered; empty if it is not.
        wait: for a retry, until it is due; for a returned one, until it may be dispatched again.
        unbegun: it did not run, so that its dispatch does not count.
    """

    delivery_id: int
    database: str
    handler: str
    status: str
    verdict: str
    duration_s: float
    error: str = ""
    wait: timedelta = _NO_WAIT
    lane: str = ""
    unbegun: bool = False

    @classmethod
    def succeeded(cls, run: Run) -> list[Outcome]:
        """Say that the handler ran to its end."""
        return cls._of(run, "" if run.settled else _SUCCEEDED, "succeeded")

    @classmethod
    def retried(cls, run: Run, error: str, wait: timedelta) -> list[Outcome]:
        """Say that the handler failed and Dramatiq has enqueued another try."""
        return cls._of(run, _DISPATCHED, "retried", error, wait)

    @classmethod
    def failed(cls, run: Run, error: str) -> list[Outcome]:
        """Say that the handler failed for the last time."""
        return cls._of(run, _FAILED, "failed", error)

    @classmethod
    def discarded(cls, run: Run, reason: str) -> list[Outcome]:
        """Say that there was nothing to do."""
        return cls._of(run, _DISCARDED, "", reason)

    @classmethod
    def returned(cls, run: Run, reason: str, wait: timedelta = _NO_WAIT) -> list[Outcome]:
        """Say that the message was not run to its end here, and its deliveries may be sent again."""
        return cls._of(run, _PENDING, "retried" if run.split else "", reason, wait)

    @classmethod
    def tried(cls, run: Run, error: str, wait: timedelta) -> list[Outcome]:
        """Say that the handler failed and its delivery is to be dispatched again."""
        return cls._of(run, _PENDING, "retried", error, wait)

    @classmethod
    def not_begun(cls, run: Run, reason: str = "", wait: timedelta = _NO_WAIT) -> list[Outcome]:
        """Say that the deliveries were not run here, and may be sent again."""
        return [one._replace(unbegun=True) for one in cls._of(run, _PENDING, "", reason, wait)]

    @property
    def is_final(self) -> bool:
        """Return whether the delivery is not going to run again by itself."""
        return self.status not in _OPEN

    @classmethod
    def _of(
        cls, run: Run, status: str, verdict: str, error: str = "", wait: timedelta = _NO_WAIT
    ) -> list[Outcome]:
        # The statistics are per event, so those of a batch share its duration.
        duration_s = run.duration_s / max(len(run.deliveries), 1)
        database, handler, lane = run.database, run.handler, run.lane
        text = storable(error) if error else ""
        outcomes = [
            cls(one, database, handler, status, verdict, duration_s, text, wait, lane)
            for one in (run.undecided if run.discarded else run.deliveries)
        ]
        outcomes += [
            cls(one, database, handler, _DISCARDED, "", duration_s, storable(reason), wait, lane)
            for one, reason in run.discarded.items()
        ]
        return outcomes
