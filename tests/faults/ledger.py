"""What was committed, compared with what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.faults.app import HANDLERS
from tests.processes import wait_until

# Longer than any recovery that a scenario allows: what is not there by then is lost.
LOST_AFTER_S = 90
OUTAGE_S = 60

APPLICATION = "ledger"

_COUNT = """
WITH due AS (
    SELECT sale.id AS sale, handler FROM faults_sale sale, unnest(%(handlers)s::text[]) AS handler
    WHERE run = %(run)s
), ran AS (
    SELECT sale, handler, count(*) - 1 AS again, min(began_at) AS began_at, min(done_at) AS done_at
    FROM faults_effect WHERE run = %(run)s GROUP BY sale, handler
), followed AS (
    SELECT began_at, max(coalesce(done_at, 'infinity')) OVER (
        PARTITION BY lane ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS done_before
    FROM faults_sale LEFT JOIN ran ON sale = faults_sale.id AND handler = 'follow' WHERE run = %(run)s
)
SELECT count(DISTINCT due.sale),
       count(*) FILTER (WHERE due.sale IS NOT NULL AND done_at IS NULL),
       coalesce(sum(again) FILTER (WHERE handler <> 'book'), 0)::int,
       coalesce(sum(again) FILTER (WHERE handler = 'book'), 0)::int,
       count(*) FILTER (WHERE due.sale IS NULL),
       (SELECT count(*) FROM followed WHERE began_at < done_before)
FROM due FULL JOIN ran USING (sale, handler)
"""

_UNSETTLED = """
SELECT coalesce(json_object_agg(status, number), '{}') FROM (
    SELECT status, count(*) AS number FROM outbox_delivery WHERE status <> 'succeeded' GROUP BY status
) AS unsettled
"""


_ACTIVITY = """
SELECT string_agg(concat_ws(' ', pid, application_name, state, wait_event_type, wait_event,
                            clock_timestamp() - query_start, left(query, 200)), chr(10))
FROM pg_stat_activity WHERE datname = current_database()
"""


@dataclass(frozen=True)
class Count:
    """The ledger of one run.

    Args:
        committed: business rows.
        lost: effects that a committed row should have had, and has not.
        duplicated: effects of the plain and the ordered handler beyond the first of a row.
        effects_twice: the same of the transactional handler.
        unasked: effects of rows that were rolled back.
        out_of_order: rows with which the ordered handler began before an earlier one of their lane was done.
    """

    committed: int
    lost: int
    duplicated: int
    effects_twice: int
    unasked: int
    out_of_order: int


class Ledger:
    """Reads the tables of a database that may be down at any moment."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None

    def ask(self, question: str, parameters: Any = None) -> list[Any]:
        """Return the first row of an answer; ask again while the database is away."""
        deadline = time.monotonic() + OUTAGE_S
        while True:
            try:
                return self._ask(question, parameters)
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > deadline:
                    raise

    def tell(self, *statements: str) -> None:
        """Carry out statements."""
        for statement in statements:
            self._connected().execute(statement.encode())

    def count(self, run: str) -> Count:
        """Compare what was committed for a run with what became of it."""
        return Count(*self.ask(_COUNT, {"run": run, "handlers": list(HANDLERS)}))

    def effects(self, run: str) -> int:
        """Return how many effects a run has had."""
        return int(self.ask("SELECT count(*) FROM faults_effect WHERE run = %s", [run])[0])

    def sales(self, run: str) -> int:
        """Return how many sales of a run are committed."""
        return int(self.ask("SELECT count(*) FROM faults_sale WHERE run = %s", [run])[0])

    def unsettled(self) -> dict[str, int]:
        """Return how many deliveries are in which state other than `succeeded`."""
        answer: dict[str, int] = self.ask(_UNSETTLED)[0]
        return answer

    def activity(self) -> str:
        """Return what each connection does, a line for each."""
        return str(self.ask(_ACTIVITY)[0])

    def wait_until_even(self, run: str) -> Count:
        """Wait until nothing is missing, or for so long that what is missing is lost."""
        deadline = time.monotonic() + LOST_AFTER_S
        while (count := self.count(run)).lost and time.monotonic() < deadline:
            time.sleep(0.02)
        return count

    def wait_until_settled(self) -> None:
        """Wait until all deliveries are confirmed."""
        wait_until(lambda: not self.unsettled(), LOST_AFTER_S, f"all to be settled: {self.unsettled()}")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, question: str, parameters: Any) -> list[Any]:
        row = self._connected().execute(question.encode(), parameters).fetchone()
        return list(row) if row else []

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            # Of tables that have just grown PostgreSQL knows little, and would go through all effects for
            # each sale. That took half a second of what passes for a recovery.
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name=APPLICATION,
                options="-c enable_nestloop=off",
            )
        return self._connection
