"""Deliveries whose process died with their messages in its memory: they are redelivered at once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from django.db import connections

from outbox.models import Delivery, ProcessHeartbeat
from outbox.models.row_locks import brief_transaction
from outbox.posix import may_be_running
from outbox.process_fields import process_fields

from .maintenance_task import TaskRun
from .owner_lock import number_of

logger = logging.getLogger(__name__)

# A process that has lost its session takes its lock again within this time.
FREE_FOR_S = 3.0
CHUNK = 1000
# A relay of handlers in its own process checks often. Another relay checks for what was there before a change
# of the broker.
OWNER_INTERVAL_S = 1.0
OTHER_INTERVAL_S = 60.0


class Orphans:
    """Redelivers the orphans of one database.

    Args:
        own: the number of this process; None if it has no messages in its memory.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, *, database: str, own: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval_s = OTHER_INTERVAL_S if own is None else OWNER_INTERVAL_S
        self._database = database
        self._own = own
        self._clock = clock
        self._free_since: dict[int, float] = {}

    def run(self) -> TaskRun:
        """Redeliver a chunk of the deliveries of each process that is dead."""
        deliveries = Delivery.objects.using(self._database)
        owned = deliveries.unconfirmed().filter(owner__isnull=False).exclude(owner=self._own or 0)
        owners = list(owned.order_by("owner").values_list("owner", flat=True).distinct())
        self._free_since = {one: at for one, at in self._free_since.items() if one in owners}
        redelivered = has_more = 0
        for owner in owners:
            with brief_transaction(self._database):
                if self._is_dead(owner):
                    some = deliveries.redeliver_orphans(owner, limit=CHUNK)
                    redelivered, has_more = redelivered + some, has_more or some == CHUNK
        if redelivered:
            extra = {"database": self._database}
            logger.warning("redelivering %d deliveries whose process died", redelivered, extra=extra)
        return TaskRun(redelivered, has_more=bool(has_more))

    def _is_dead(self, owner: int) -> bool:
        """Take the lock of a process for this transaction; return whether that proves its death."""
        if connections[self._database].vendor != "postgresql":
            # One process at a time has the messages of such a database, and it is this one.
            return self._own is not None
        with connections[self._database].cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [owner])
            is_free = cursor.fetchone()[0]
        if not is_free:
            self._free_since.pop(owner, None)
            return False
        since = self._free_since.setdefault(owner, self._clock())
        return self._clock() - since >= FREE_FOR_S or self._has_ended_here(owner)

    def _has_ended_here(self, owner: int) -> bool:
        """Return whether the process ran on this host, and the host has no such process now."""
        here = ProcessHeartbeat.objects.using(self._database).filter(host=process_fields()["host"])
        pids = [pid for process_id, pid in here.values_list("pk", "pid") if number_of(process_id) == owner]
        # In a container that was started again, this process has the number of its predecessor.
        return bool(pids) and not any(pid != os.getpid() and may_be_running(pid) for pid in pids)
