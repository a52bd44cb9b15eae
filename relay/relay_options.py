"""The options of one relay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from outbox.publishing.notify_throttle import BUSY_GAP_S

from .embedded_worker import EmbeddedWorker
from .owner_lock import OwnerLock

# A busy host does not notify of each commit. So the relay checks again this soon after a dispatch, and then
# after ever longer waits up to POLL_INTERVAL.
SHORTEST_WAIT_S = BUSY_GAP_S + 0.01


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """The options of one relay; an option that is None has the value of its setting.

    Args:
        once: dispatch one batch and end.
        drain: end when no delivery is due.
        progress: called with the number of deliveries of each batch.
        alive: called again and again while the relay does not hang, also while a server is away.
        maintain_beside: maintain in a thread. A relay that ends, or serves SQLite, maintains in its loop.
        shortest_wait_s: the wait between a dispatch and the first check without a notification.
        clock: returns monotonic seconds.
        worker: the worker in this process; None if handlers run in other processes.
    """

    database: str
    batch_size: int | None = None
    poll_interval: timedelta | None = None
    queues: tuple[str, ...] = ()
    listen: bool = True
    once: bool = False
    drain: bool = False
    progress: Callable[[int], None] | None = None
    alive: Callable[[], object] = lambda: None
    maintain_beside: bool = True
    shortest_wait_s: float = SHORTEST_WAIT_S
    clock: Callable[[], float] = time.monotonic
    worker: EmbeddedWorker | None = None

    @property
    def ends(self) -> bool:
        """Whether the relay ends without a stop."""
        return self.once or self.drain

    @property
    def owner(self) -> OwnerLock | None:
        """The lock of this process, if it runs the handlers of the database."""
        return self.worker.owners[self.database] if self.worker else None

    def in_memory(self) -> set[int]:
        """Return the deliveries whose message or outcome this process has in its memory."""
        return self.worker.in_memory() if self.worker else set()
