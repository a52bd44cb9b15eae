"""The buffer of one database: the latest outcome of each delivery, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.events import DeliveryRef
from outbox.models import Delivery, Tally

from .outcome import Outcome

_State = Delivery.State
_UNFINISHED = (str(_State.PENDING), str(_State.DISPATCHED))
_REPLACED_BY_SUCCESS = (*_UNFINISHED, str(_State.FAILED))
_SUCCEEDED = str(_State.SUCCEEDED)


@dataclass(slots=True)
class Buffer:
    """The outcomes and counts that are not yet written to one database.

    Args:
        outcomes: the latest outcome of each delivery.
        tallies: the counts of each handler, by its name.
        ordering_keys: the handler and key of each ordering key to unblock.

    Attributes:
        text_bytes: the size of the errors and message options of the outcomes.
    """

    outcomes: dict[DeliveryRef, Outcome] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    ordering_keys: set[tuple[str, str]] = field(default_factory=set)
    text_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.text_bytes = sum([one.text_bytes for one in self.outcomes.values() if one.has_text])

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[Outcome]) -> Buffer:
        """Return a buffer of outcomes and of their ordering keys, without counts."""
        return cls(
            {outcome.delivery: outcome for outcome in outcomes},
            ordering_keys={
                (outcome.handler, outcome.ordering_key) for outcome in outcomes if outcome.ordering_key
            },
        )

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.tallies or self.ordering_keys)

    def add(self, outcome: Outcome) -> None:
        """Add an outcome; as in the table, only success replaces a final outcome."""
        earlier = self.outcomes.get(outcome.delivery)
        if earlier is not None:
            if earlier.state not in replaceable_states(outcome):
                return
            self.text_bytes -= earlier.text_bytes
        self.outcomes[outcome.delivery] = outcome
        if outcome.has_text:
            self.text_bytes += outcome.text_bytes

    def tally(self, handler: str) -> Tally:
        """Return the tally of a handler."""
        tally = self.tallies.get(handler)
        if tally is None:
            tally = self.tallies[handler] = Tally()
        return tally

    def split(self, size: int) -> list[Buffer]:
        """Return parts of at most `size` outcomes; the last has the keys, which are unblocked in the end."""
        outcomes = list(self.outcomes.items())
        parts = [Buffer(dict(outcomes[start : start + size])) for start in range(0, len(outcomes), size)]
        parts = parts or [Buffer()]
        parts[0].tallies, parts[-1].ordering_keys = self.tallies, self.ordering_keys
        return parts

    def merge_older(self, older: Buffer) -> None:
        """Merge the content of a buffer that could not be written, as if it had been added first."""
        newer, self.outcomes, self.text_bytes = self.outcomes, older.outcomes, older.text_bytes
        for outcome in newer.values():
            self.add(outcome)
        for handler, tally in older.tallies.items():
            self.tally(handler).add(tally)
        self.ordering_keys |= older.ordering_keys


def replaceable_states(outcome: Outcome) -> tuple[str, ...]:
    """Return the states that an outcome may replace: for success all but another success or a discard."""
    return _REPLACED_BY_SUCCESS if outcome.state == _SUCCEEDED else _UNFINISHED
