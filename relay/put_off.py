"""The reasons for which a relay puts deliveries off: reported once, and shown in its heartbeat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from outbox.observability.telemetry import deliveries_put_off

from .claimed_delivery import ClaimedDelivery

# A reason lasts this much longer than the delay of its deliveries, as a busy relay claims them late.
MARGIN_S = 60.0
# Bounds the heartbeat, as rows may name any number of handlers.
MAX_REASONS = 100


class PutOffReasons:
    """The reasons of one relay that hold now.

    Args:
        database: the alias of the database.
        clock: returns monotonic seconds.
    """

    def __init__(self, *, database: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._ends_at: dict[str, float] = {}

    def note(self, put_off: Iterable[tuple[ClaimedDelivery, str, timedelta]], *, report: bool = True) -> None:
        """Note deliveries that were put off, each with the reason and the delay; report new reasons."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        known = set(self.current())
        ends_at = {reason: self._ends_at[reason] for reason in known}
        for claimed, reason, delay in put_off:
            # Without a delay it is the rest of a batch whose broker went away, which the next probe reports.
            if delay and (reason in ends_at or len(ends_at) < MAX_REASONS):
                counts[reason][claimed.handler] += 1
                ends_at[reason] = self._clock() + delay.total_seconds() + MARGIN_S
        # One step, since the thread of maintenance reads the reasons for the heartbeat.
        self._ends_at = ends_at
        for reason in counts.keys() - known if report else ():
            deliveries_put_off.send_robust(
                PutOffReasons, database=self._database, counts=dict(counts[reason]), error=reason
            )

    def current(self) -> list[str]:
        """Return the reasons that hold now."""
        now = self._clock()
        return [reason for reason, ends_at in self._ends_at.items() if ends_at > now]

    def problems(self) -> list[dict[str, Any]]:
        """Return the problems for the heartbeat."""
        return [{"kind": "put_off", "cause": reason} for reason in self.current()]
