"""What a relay does beside dispatching: says that it lives, redelivers, and prunes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from django.db.models.functions import Now

from outbox.conf import get_settings
from outbox.models import Delivery, PausedHandler, RelayHeartbeat
from outbox.pruning import Pruning
from outbox.registry import registry

from .redelivery import Ask, Redelivery

BEAT_INTERVAL_S = 5.0
# What is overdue is looked for this often, and oftener where deliveries are overdue sooner: at four looks a
# timeout, the last one adds a quarter to it at most.
REDELIVER_INTERVAL_S = 10.0
REDELIVER_LOOKS = 4
SHORTEST_REDELIVER_INTERVAL_S = 0.5
PRUNE_INTERVAL_S = 60.0
HELD_INTERVAL_S = 5.0
LANE_CHUNK = 1000
# Pruning follows the publishers at many times their speed, yet never keeps the relay from its work for long.
PRUNE_CHUNKS_AT_ONCE = 20
FORGET_RELAYS_AFTER = timedelta(days=1)


# Where dead rows pile up, what walks past them takes ever longer: do it less often, for no more than this
# share of the time. A slow broker, too, makes redelivery slow, so there is an end to that.
WALK_SHARE = 0.05
LONGEST_INTERVAL_S = 60.0


@dataclass
class Chore:
    """Something to do every so often, and less often if it takes more than its share of the time."""

    interval_s: float
    do: Callable[[], int | None]
    share: float = 1.0
    due_at: float = field(default_factory=time.monotonic)

    def run_if_due(self) -> int:
        """Do it, if it is time, and return how many deliveries it gave back."""
        started = time.monotonic()
        if started < self.due_at:
            return 0
        # Before it is done, since it may fail.
        self.due_at = started + self.interval_s
        given_back = self.do() or 0
        rest_s = min((time.monotonic() - started) / self.share, LONGEST_INTERVAL_S)
        self.due_at = max(self.due_at, started + rest_s)
        return given_back


class Housekeeping:
    """The chores of one relay; each is a few short statements."""

    def __init__(self, *, database: str, queues: tuple[str, ...] = (), ask: Ask | None = None) -> None:
        self.relay_id = uuid4()
        self._database = database
        self._queues = queues
        self._redelivery = Redelivery(database=database, ask=ask)
        self._dispatched = 0
        self._reported = 0
        self._state = ("running", "")
        self._lane = ("", "")
        self._pruning = Pruning(database)
        self._beat = Chore(BEAT_INTERVAL_S, self.beat)
        self._redeliver = Chore(_redeliver_interval_s(), self.redeliver, share=WALK_SHARE)
        self._chores = (
            self._beat,
            self._redeliver,
            Chore(HELD_INTERVAL_S, self.release_held, share=WALK_SHARE),
            Chore(PRUNE_INTERVAL_S, self.prune),
        )

    def tick(self) -> bool:
        """Do what is due; return whether deliveries were given back, for which it is time to look."""
        return sum(chore.run_if_due() for chore in self._chores) > 0

    def redelivers_in_s(self) -> float:
        """Return in how many seconds it is time to look for what is overdue; zero or less for now."""
        return self._redeliver.due_at - time.monotonic()

    def note_dispatched(self, count: int) -> None:
        """Remember, for the next heartbeat, that deliveries went out."""
        self._dispatched += count

    def note_state(self, state: str, detail: str = "") -> bool:
        """Remember how the relay fares, for the heartbeat of the next tick; return whether it is news."""
        if (state, detail) == self._state:
            return False
        self._state = (state, detail)
        self._beat.due_at = time.monotonic()
        return True

    def beat(self) -> None:
        """Say that this relay lives, and what it last did."""
        state, detail = self._state
        fields: dict[str, object] = {"state": state, "detail": detail, "dispatched": self._dispatched}
        if self._dispatched != self._reported:
            fields["last_dispatch_at"] = Now()
            self._reported = self._dispatched
        RelayHeartbeat.objects.using(self._database).beat(
            self.relay_id,
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            queues=",".join(self._queues)[:1000],
            **fields,
        )

    def redeliver(self) -> int:
        """Send again what no worker has confirmed in time, and no broker has any more; return how many."""
        return self._redelivery.run()

    def release_held(self) -> int:
        """Let go what nothing holds any more, such as a lane whose worker died after its confirmation.

        Returns:
            How many deliveries that was.
        """
        deliveries = Delivery.objects.using(self._database)
        lanes = deliveries.held_lanes(after=self._lane, limit=LANE_CHUNK)
        # From lane to lane, and then from the first again: more may be held than are looked at in one go.
        self._lane = lanes[-1] if len(lanes) == LANE_CHUNK else ("", "")
        released = deliveries.release_lanes(lanes, skipping=registry.skipping())
        return released + deliveries.let_go_stranded(
            paused=PausedHandler.objects.using(self._database).values("handler"),
            batched=[name for name, handler in registry.handlers.items() if handler.batch],
            limit=LANE_CHUNK,
        )

    def prune(self) -> None:
        """Delete some of the events that are past their retention, and relays long gone."""
        self._pruning.go_on(PRUNE_CHUNKS_AT_ONCE)
        RelayHeartbeat.objects.using(self._database).forget(FORGET_RELAYS_AFTER)

    def leave(self) -> None:
        """Say that this relay has stopped."""
        RelayHeartbeat.objects.using(self._database).filter(pk=self.relay_id).delete()


def _redeliver_interval_s() -> float:
    share_s = get_settings().confirm_timeout.total_seconds() / REDELIVER_LOOKS
    return max(SHORTEST_REDELIVER_INTERVAL_S, min(share_s, REDELIVER_INTERVAL_S))
