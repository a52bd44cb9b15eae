"""Deliveries whose process died with their messages in its memory: they are redelivered at once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection

from django.db import connections

from outbox.models import Delivery, DeliveryQuerySet, ProcessHeartbeat
from outbox.models.row_locks import brief_transaction
from outbox.posix import may_be_running
from outbox.process_fields import process_fields

from .maintenance_task import TaskRun
from .owner_lock import is_free_here, number_of

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
        in_memory: returns the deliveries whose message or outcome this process has in its memory.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        database: str,
        own: int | None,
        in_memory: Callable[[], Collection[int]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s = OTHER_INTERVAL_S if own is None else OWNER_INTERVAL_S
        self._database = database
        self._own = own
        self._in_memory = in_memory
        self._clock = clock
        self._free_since: dict[int, float] = {}
        self._missing_since: dict[int, float] = {}

    def run(self) -> TaskRun:
        """Redeliver a chunk of the deliveries of each dead process, and own ones without a message."""
        owned = self._deliveries.unconfirmed().filter(owner__isnull=False)
        owners = list(owned.order_by("owner").values_list("owner", flat=True).distinct())
        self._free_since = {one: at for one, at in self._free_since.items() if one in owners}
        redelivered = self._redeliver_missing() if self._own in owners else 0
        has_more = False
        for owner in owners:
            with brief_transaction(self._database):
                if owner != self._own and self._is_dead(owner):
                    some = self._deliveries.filter(owner=owner).redeliver_orphans(limit=CHUNK)
                    redelivered, has_more = redelivered + some, has_more or some == CHUNK
        if redelivered:
            extra = {"database": self._database}
            logger.warning(
                "redelivering %d deliveries whose message died with its process", redelivered, extra=extra
            )
        return TaskRun(redelivered, has_more=has_more)

    def _redeliver_missing(self) -> int:
        """Redeliver own deliveries whose claim was committed although its connection broke before the answer.

        This process then has no message of them. One that has just been claimed gets its message soon.
        """
        rows = self._deliveries.unconfirmed().filter(owner=self._own)
        missing = set(rows.values_list("pk", flat=True)[:CHUNK]).difference(self._in_memory())
        now = self._clock()
        self._missing_since = {pk: self._missing_since.get(pk, now) for pk in missing}
        lost = [pk for pk, since in self._missing_since.items() if now - since >= FREE_FOR_S]
        if not lost:
            return 0
        with brief_transaction(self._database):
            return self._deliveries.filter(pk__in=lost, owner=self._own).redeliver_orphans(limit=CHUNK)

    @property
    def _deliveries(self) -> DeliveryQuerySet:
        deliveries: DeliveryQuerySet = Delivery.objects.using(self._database)
        return deliveries

    def _is_dead(self, owner: int) -> bool:
        """Take the lock of a process for this transaction; return whether that proves its death."""
        if connections[self._database].vendor != "postgresql":
            # One process at a time has the messages of such a database.
            return self._own is not None or is_free_here(self._database)
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
