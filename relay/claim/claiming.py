"""Claims, and looks at when the next one is worth while."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

from django.db import connections

from outbox.conf import get_settings
from outbox.registry import Batching

from ..claimed import Claimed
from . import statements
from .front import Front, Fronts, Position, looks
from .portable import PortableClaim
from .taken import Taken

# A batch is bounded in bytes as well as in rows, so that neither a relay's memory nor the time for which it
# holds row locks depends on how large payloads are. The size is what the rows take in the table.
MAX_BATCH_BYTES = 16 * 1024 * 1024

# A relay that is stopped in the middle of a batch (SIGSTOP, a frozen machine) must not hold its locks for
# ever: the server ends its transaction after the broker's deadline and this margin.
IDLE_IN_TRANSACTION_MARGIN = timedelta(seconds=20)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a relay asks for, within the current transaction.

    Args:
        limit: rows at most.
        queues: only deliveries to these queues; empty for all.
    """

    database: str
    limit: int
    queues: tuple[str, ...] = ()
    fronts: Fronts = field(default_factory=Fronts, init=False, repr=False, compare=False)

    def take(self, *, leave_lanes: bool = False) -> Taken:
        """Claim due deliveries in the order in which they are due, other than those of lanes if asked to."""
        if not self._is_postgresql:
            return self._portable.take(leave_lanes=leave_lanes)
        where = "AND key = ''" if leave_lanes else ""
        return self._take_due(statements.CLAIM, self.fronts.ordinary, where)

    def take_lanes(self, *, skipping: Sequence[str]) -> Taken:
        """Claim the first unfinished delivery of each lane; hold those that are due behind another one.

        Args:
            skipping: handlers whose lanes go on past a failed delivery.
        """
        if not self._is_postgresql:
            return self._portable.take_lanes(skipping=skipping)
        return self._take_due(
            statements.CLAIM_LANES, self.fronts.lanes, "AND key <> ''", skipping=list(skipping)
        )

    def take_batch(self, handler: str, batch: Batching) -> Taken:
        """Claim a batch of one handler, if it is full or its oldest delivery has waited long enough."""
        if not self._is_postgresql:
            return self._portable.take_batch(handler, batch)
        # Where `ripe_in`, which is asked before, has just found the first.
        start = self.fronts.of_batch(handler).position
        rows, seen = self._run(
            statements.CLAIM_BATCH, start, handler=handler, wait=batch.wait, limit=batch.size
        )
        return Taken(_claimed(rows), len(rows) == batch.size, paused=_paused(seen))

    def ripe_in(self, batches: Mapping[str, Batching]) -> dict[str, float]:
        """Return, by handler that has held deliveries, in how many seconds a batch of it is to run.

        One statement looks at no more than one batch's rows of each handler that is not paused.
        """
        if not self._is_postgresql:
            return self._portable.ripe_in(batches)
        return self._look(statements.RIPE_IN, batches) if batches else {}

    def due_in(self, batches: Mapping[str, Batching] | None = None) -> float:
        """Return in how many seconds a delivery or a batch is due: at most 0.0 if one is, up to infinity."""
        batches = batches or {}
        if not self._is_postgresql:
            return min([self._portable.due_in(), *self._portable.ripe_in(batches).values()])
        statement = statements.DUE_IN.format(where=self._of_queues)
        if batches:
            statement = f"{statement} UNION ALL {statements.RIPE_IN}"
        due_in = min(self._look(statement, batches, also=(statements.ANY,)).values(), default=inf)
        if self.fronts.due.was_full:
            # Nothing pending is before the first one, and claims are to find that, however late it came.
            self.fronts.ordinary.follow(self.fronts.due)
            self.fronts.lanes.follow(self.fronts.due)
        return due_in

    @property
    def _is_postgresql(self) -> bool:
        return connections[self.database].vendor == "postgresql"

    @property
    def _portable(self) -> PortableClaim:
        return PortableClaim(
            database=self.database, limit=self.limit, queues=self.queues, max_bytes=MAX_BATCH_BYTES
        )

    @property
    def _of_queues(self) -> str:
        return "AND queue = ANY(%(queues)s)" if self.queues else ""

    def _take_due(self, statement: str, front: Front, where: str, **parameters: Any) -> Taken:
        with front.look() as start:
            rows, seen = self._run(
                statement, start, f"{where} {self._of_queues}", limit=self.limit, **parameters
            )
        # Fewer than were looked at if they were cut by their bytes.
        more = seen["rows"] >= self.limit or len(rows) < seen["rows"]
        front.move(Position(*seen["last"]) if more else None, now_us=seen["now_us"])
        held = frozenset((row[2], row[4]) for row in rows if row[-1])
        return Taken(_claimed(rows), more, held, _paused(seen))

    def _run(
        self, statement: str, start: Position, where: str = "", **parameters: Any
    ) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        """Run a claim; return its rows in the order of insertion, and what it has seen on its way."""
        settings = get_settings()
        parameters |= {
            "due_at": start.due_at,
            "id": start.id,
            "queues": list(self.queues),
            "confirm_timeout": settings.confirm_timeout,
            "max_bytes": MAX_BATCH_BYTES,
            "idle_limit": _milliseconds(settings.dispatch_timeout + IDLE_IN_TRANSACTION_MARGIN),
        }
        mark = statements.DISPATCHED if settings.confirm else statements.SUCCEEDED
        with connections[self.database].cursor() as cursor:
            cursor.execute(statement.format(where=where, mark=mark), parameters)
            found = cursor.fetchall()
        (seen,) = (json.loads(row[8]) for row in found if row[-1] is None)
        return sorted(row for row in found if row[-1] is not None), seen

    def _look(
        self, statement: str, batches: Mapping[str, Batching], *, also: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return in how many seconds what is due, by handler; move the fronts to what was found first."""
        fronts = {name: self.fronts.of_batch(name) for name in batches} | dict.fromkeys(also, self.fronts.due)
        with looks(fronts.values()) as starts, connections[self.database].cursor() as cursor:
            parameters: dict[str, Any] = {
                "handlers": list(batches),
                "sizes": [rule.size for rule in batches.values()],
                "waits": [rule.wait for rule in batches.values()],
                "due_ats": [start.due_at for start in starts[: len(batches)]],
                "ids": [start.id for start in starts[: len(batches)]],
                "due_at": starts[-1].due_at,
                "id": starts[-1].id,
                "queues": list(self.queues),
            }
            cursor.execute(statement, parameters)
            found = cursor.fetchall()
        for name, _due_in, due_us, pk, now_us in found:
            ahead = batches[name].wait if name in batches else timedelta()
            first = None if due_us is None else Position(due_us, pk)
            fronts[name].move(first, now_us=now_us, ahead=ahead)
        return {name: due_in for name, due_in, *_ in found if due_in is not None}


def _claimed(rows: Sequence[tuple[Any, ...]]) -> list[Claimed]:
    return [tuple.__new__(Claimed, row[:-1]) for row in rows if not row[-1]]


def _paused(seen: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(seen["paused"] or ())


def _milliseconds(duration: timedelta) -> str:
    return f"{int(duration.total_seconds() * 1000)}ms"
