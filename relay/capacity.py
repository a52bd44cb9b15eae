"""How many deliveries a relay may claim: as many as the worker of its own process can take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from outbox.confirmations import confirmations
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery

from .claimed_delivery import ClaimedDelivery
from .relay_options import RelayOptions

# How long a wait lasts before the relay can see that it is to stop, or maintain.
SLICE_S = 0.1
SLICES_PER_SECOND = 10
# The slices for which a relay that starts, or has lost its database, waits for its lock before it reports an
# outage.
LOCK_SLICES = 50

UNLIMITED = sys.maxsize


class Capacity:
    """The capacity of one relay; without a worker in its process it is unlimited."""

    def __init__(self, options: RelayOptions) -> None:
        self._worker = options.worker
        self._owner = options.owner
        self._database = options.database
        self._drain = options.drain
        self._was_idle = True
        self._slices = 0
        self._unlocked_slices = 0

    def wait(self) -> int:
        """Wait until deliveries may be claimed; return how many, 0 after a slice of time.

        Raises:
            BrokerUnavailable: if this process has lost its lock, as another one would take its deliveries.
        """
        if self._worker is None or self._owner is None:
            return UNLIMITED
        self._was_idle = not self._worker.in_memory()
        room = self._worker.broker.wait_for_room(SLICE_S)
        if not self._owner.wait(SLICE_S):
            room = 0
            self._unlocked_slices += 1
            if self._unlocked_slices >= LOCK_SLICES:
                raise BrokerUnavailable("this process does not hold the lock of its deliveries")
        else:
            self._unlocked_slices = 0
        self._slices = 0 if room else self._slices + 1
        return room

    @property
    def is_used_up(self) -> bool:
        """Whether there was no capacity for a second, or a multiple of it."""
        return self._slices % SLICES_PER_SECOND == 0

    def own(self, rows: Sequence[ClaimedDelivery]) -> None:
        """Record on sent deliveries, within their claim, that this process has their messages."""
        if self._owner is not None and rows:
            self._was_idle = False
            ids = [row.delivery_id for row in rows]
            Delivery.objects.using(self._database).filter(pk__in=ids).update(owner=self._owner.number)

    def was_used(self) -> bool:
        """Return whether a drain has to check again, and wait for running deliveries before.

        The events that they publish, and the next deliveries of their ordering keys, are due after them.
        """
        if self._worker is None or not self._drain or self._was_idle:
            return False
        if self._worker.broker.wait_until_empty(SLICE_S):
            confirmations.flush()
        return True
