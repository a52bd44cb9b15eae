"""Messages that a broker does not take, although it can be reached."""

from __future__ import annotations

from collections.abc import Callable

from outbox.errors import BrokerFull

from .marking import BROKER_AWAY_DELAY, DispatchResult

# A shortfall ends after this time without another one: longer than until the next attempt.
LASTS_S = 3 * BROKER_AWAY_DELAY.total_seconds()


class Shortfall:
    """The last time that one of the brokers took no message, for example because of a full queue.

    A broker that is nearly full takes messages now and then. The shortfall goes on meanwhile, so that the
    relay reports it once.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        is_full: whether the memory of the broker was the cause.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.is_full = False
        self._clock = clock
        self._reason = ""
        self._ends_at = 0.0
        self._handlers: set[str] = set()
        self._is_new = False

    @property
    def reason(self) -> str:
        """Why the broker took no message; empty if it has taken deliveries of the same handlers since."""
        return self._reason if self._clock() < self._ends_at else ""

    def take(self) -> bool:
        """Return whether a batch fell short since the last call."""
        is_new, self._is_new = self._is_new, False
        return is_new

    def note(self, result: DispatchResult) -> None:
        """Remember the result of a dispatch."""
        fell_short = bool(result.shortfall and not result.sent)
        if fell_short or result.unreachable:
            handlers = {row.handler for row, _reason, _delay in result.postponed}
            is_full = isinstance(result.unreachable, BrokerFull)
            self._begin(result.shortfall or str(result.unreachable), handlers, is_full=is_full)
        elif self._reason and any(row.handler in self._handlers for row in result.sent):
            self._reason = ""
        self._is_new = self._is_new or fell_short

    def note_full(self, problem: BrokerFull) -> None:
        """Remember that the broker has too little memory left."""
        self._begin(str(problem), set(), is_full=True)

    def _begin(self, reason: str, handlers: set[str], *, is_full: bool = False) -> None:
        self._reason, self._handlers, self.is_full = reason, handlers, is_full
        self._ends_at = self._clock() + LASTS_S
