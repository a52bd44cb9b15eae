"""Claims, and checks of when the next claim is due."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

from django.db import connections

from outbox.conf import get_settings
from outbox.registry import BatchOptions
from relay.claimed_delivery import ClaimedDelivery

from . import statements
from .portable import PortableClaim
from .prepared import PreparedStatements
from .result import ClaimResult
from .scan_cursor import GRACE_S, Position, ScanCursor, ScanCursors

# A claim is limited in bytes too, since large payloads cost memory and keep row locks for long. These are the
# bytes of the text, of which a relay holds about four copies at once.
MAX_BATCH_BYTES = 8 * 1024 * 1024

# A relay may stop in the middle of a batch (SIGSTOP, a frozen machine). The server then ends the transaction,
# and with it the row locks, after the broker's deadline and this margin.
IDLE_IN_TRANSACTION_MARGIN = timedelta(seconds=20)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The claims of one relay, each within the current transaction.

    Args:
        limit: the largest number of deliveries of one claim.
        queues: claim only deliveries to these queues; empty for all.
        max_bytes: bytes of payloads and headers of one claim at most; its first delivery may be larger.
    """

    database: str
    limit: int
    queues: tuple[str, ...] = ()
    max_bytes: int = MAX_BATCH_BYTES
    cursors: ScanCursors = field(default_factory=ScanCursors, repr=False, compare=False)
    prepared: PreparedStatements = field(default_factory=PreparedStatements, repr=False, compare=False)

    def claim_due(self, *, skip_ordered: bool = False) -> ClaimResult:
        """Claim due deliveries in the order of their due times, without ordered ones if asked to."""
        if not self._is_postgresql:
            return self._portable.claim_due(skip_ordered=skip_ordered)
        where = "AND key = ''" if skip_ordered else ""
        return self._claim(statements.CLAIM, self.cursors.keyless, where)

    def claim_ordered(self, *, skipping: Sequence[str]) -> ClaimResult:
        """Claim the first unfinished delivery of each ordering key, and block due ones behind it.

        Args:
            skipping: handlers whose failed deliveries do not block their key.
        """
        if not self._is_postgresql:
            return self._portable.claim_ordered(skipping=skipping)
        return self._claim(
            statements.CLAIM_ORDERED, self.cursors.ordered, "AND key <> ''", skipping=list(skipping)
        )

    def claim_batch(self, handler: str, batch: BatchOptions) -> ClaimResult:
        """Claim a batch of one handler, if it is full or its oldest delivery has waited long enough."""
        if not self._is_postgresql:
            return self._portable.claim_batch(handler, batch)
        # `ready_in`, which the relay asks first, has just moved the cursor to the first delivery.
        start = self.cursors.of_batch(handler).position
        rows, summary = self._run(
            statements.CLAIM_BATCH, start, handler=handler, wait=batch.wait, limit=batch.size
        )
        # A batch that is not ready locks rows and claims none.
        more = bool(rows) and _has_more(rows, summary, batch.size)
        return ClaimResult(_claimed(rows), more, paused=_paused(summary))

    def ready_in(self, batches: Mapping[str, BatchOptions]) -> dict[str, float]:
        """Return in how many seconds a batch is ready, by handler that has waiting deliveries.

        One statement reads at most one batch's rows of each handler that is not paused.
        """
        if not self._is_postgresql:
            return self._portable.ready_in(batches)
        return self._check(statements.READY_IN, batches) if batches else {}

    def due_in(self, batches: Mapping[str, BatchOptions] | None = None) -> float:
        """Return in how many seconds a delivery or a batch is due: at most 0.0 if one is, up to infinity."""
        batches = batches or {}
        if not self._is_postgresql:
            return min([self._portable.due_in(), *self._portable.ready_in(batches).values()])
        statement = statements.DUE_IN.format(where=self._of_queues)
        if batches:
            statement = f"{statement} UNION ALL {statements.READY_IN}"
        cursors = (self.cursors.keyless, self.cursors.ordered)
        return min(self._check(statement, batches, cursors).values(), default=inf)

    @property
    def _is_postgresql(self) -> bool:
        return connections[self.database].vendor == "postgresql"

    @property
    def _portable(self) -> PortableClaim:
        return PortableClaim(
            database=self.database, limit=self.limit, queues=self.queues, max_bytes=self.max_bytes
        )

    @property
    def _of_queues(self) -> str:
        return "AND queue = ANY(%(queues)s)" if self.queues else ""

    def _claim(self, statement: str, cursor: ScanCursor, where: str, **parameters: Any) -> ClaimResult:
        with self.cursors.scan(cursor, grace_s=GRACE_S) as start:
            rows, summary = self._run(
                statement, start, f"{where} {self._of_queues}", limit=self.limit, **parameters
            )
        more = _has_more(rows, summary, self.limit)
        cursor.move(Position(*summary["last"]) if more else None, now_us=summary["now_us"])
        blocked = frozenset((row[2], row[4]) for row in rows if row[-1])
        return ClaimResult(_claimed(rows), more, blocked, _paused(summary))

    def _run(
        self, statement: str, start: Position, where: str = "", **parameters: Any
    ) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        """Run a claim; return its rows in the order of insertion, and its summary."""
        settings = get_settings()
        parameters |= {
            "queues": list(self.queues),
            "confirm_timeout": settings.confirm_timeout,
            "max_bytes": self.max_bytes,
            "idle_limit": _milliseconds(settings.dispatch_timeout + IDLE_IN_TRANSACTION_MARGIN),
        }
        text = statement.format(where=where)
        prepare = statement is statements.CLAIM
        found = self.prepared.run(connections[self.database], text, start, parameters, prepare=prepare)
        (summary,) = (json.loads(row[9]) for row in found if row[-1] is None)
        return sorted(row for row in found if row[-1] is not None), summary

    def _check(
        self, statement: str, batches: Mapping[str, BatchOptions], due: Sequence[ScanCursor] = ()
    ) -> dict[str, float]:
        """Return in how many seconds deliveries are due, by handler, and move the cursors there.

        Args:
            statement: reads deliveries of batch handlers and, if `due` is given, all other deliveries.
            due: the cursors of all other deliveries.
        """
        cursors = {name: (self.cursors.of_batch(name),) for name in batches} | (
            {statements.ANY: due} if due else {}
        )
        with ExitStack() as stack:
            starts = {name: stack.enter_context(self.cursors.scan(*some)) for name, some in cursors.items()}
            of_batches = [starts[name] for name in batches]
            of_due = starts.get(statements.ANY, Position(0))
            parameters: dict[str, Any] = {
                "handlers": list(batches),
                "sizes": [options.size for options in batches.values()],
                "waits": [options.wait for options in batches.values()],
                "due_ats": [start.due_at for start in of_batches],
                "ids": [start.id for start in of_batches],
                "due_at": of_due.due_at,
                "id": of_due.id,
                "queues": list(self.queues),
            }
            with connections[self.database].cursor() as cursor:
                cursor.execute(statement, parameters)
                found = cursor.fetchall()
        for name, _due_in, due_us, pk, now_us in found:
            ahead = batches[name].wait if name in batches else timedelta()
            first = None if due_us is None else Position(due_us, pk)
            for one in cursors[name]:
                # No pending row of a cursor lies between the shared start and its position.
                known = first if first is None or one.was_full else max(first, one.position)
                one.move(known, now_us=now_us, ahead=ahead)
        return {name: due_in for name, due_in, *_ in found if due_in is not None}


def _has_more(rows: Sequence[tuple[Any, ...]], summary: Mapping[str, Any], limit: int) -> bool:
    # Fewer rows than were locked if their bytes exceeded the limit.
    return bool(summary["rows"] >= limit or len(rows) < summary["rows"])


def _claimed(rows: Sequence[tuple[Any, ...]]) -> list[ClaimedDelivery]:
    return [tuple.__new__(ClaimedDelivery, row[:-1]) for row in rows if not row[-1]]


def _paused(summary: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(summary["paused"] or ())


def _milliseconds(duration: timedelta) -> str:
    return f"{int(duration.total_seconds() * 1000)}ms"
