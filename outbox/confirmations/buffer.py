"""What a process has to tell a database: the latest outcome of each delivery, and counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..models import Delivery, Tally
from ..outcomes import Outcome

logger = logging.getLogger(__name__)

# Outcomes held while the database is away. Beyond it the oldest are given up: their deliveries count as
# unconfirmed, and are sent again.
MAX_BUFFERED = 200_000

_Status = Delivery.Status
_OPEN = (str(_Status.PENDING), str(_Status.DISPATCHED))
_STATES_BEFORE = {
    str(_Status.DISPATCHED): (str(_Status.DISPATCHED),),
    str(_Status.SUCCEEDED): (*_OPEN, str(_Status.FAILED)),
}


@dataclass(slots=True)
class Batch:
    """What one database is to be told."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    lanes: set[tuple[str, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.tallies or self.lanes)

    def keep(self, outcome: Outcome) -> None:
        """Keep the latest outcome of a delivery; as in the table, what has ended gives way to success alone.

        A retry may fail for good before the thread that asked for it comes to say so.
        """
        earlier = self.outcomes.get(outcome.delivery_id)
        if earlier is None or earlier.status in states_before(outcome):
            self.outcomes[outcome.delivery_id] = outcome
        if len(self.outcomes) > MAX_BUFFERED:
            del self.outcomes[next(iter(self.outcomes))]
            logger.error("the buffer of outcomes is full; the oldest delivery will be sent again")

    def tally(self, handler: str) -> Tally:
        """Return the tally of a handler."""
        tally = self.tallies.get(handler)
        if tally is None:
            tally = self.tallies[handler] = Tally()
        return tally

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Batch:
        """Return the outcomes as a batch that counts nothing."""
        return cls(
            {outcome.delivery_id: outcome for outcome in outcomes},
            lanes={(outcome.handler, outcome.lane) for outcome in outcomes if outcome.lane},
        )

    def split(self, size: int) -> list[Batch]:
        """Return pieces of at most `size` outcomes; the lanes are with the last, as they go on after all."""
        outcomes = list(self.outcomes.items())
        pieces = [Batch(dict(outcomes[start : start + size])) for start in range(0, len(outcomes), size)]
        pieces = pieces or [Batch()]
        pieces[0].tallies, pieces[-1].lanes = self.tallies, self.lanes
        return pieces

    def put_back(self, older: Batch) -> None:
        """Take back what could not be written."""
        newer, self.outcomes = self.outcomes, older.outcomes
        for outcome in newer.values():
            self.keep(outcome)
        for handler, tally in older.tallies.items():
            self.tally(handler).add(tally)
        self.lanes |= older.lanes


def states_before(outcome: Outcome) -> tuple[str, ...]:
    """Return the states that an outcome may end.

    Success is true whatever the row says meanwhile. A retry only puts off what is dispatched: Dramatiq
    enqueues it before the outbox may report it, so that what it has come to may be known already.
    """
    return _STATES_BEFORE.get(outcome.status, _OPEN)
