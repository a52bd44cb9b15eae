"""Compares the committed business rows with the effects of the handlers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.support.processes import wait_until

from .app import HANDLERS

# Longer than the recovery that any scenario allows. An effect that is missing after this time is lost.
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
        PARTITION BY ordering_key ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
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
SELECT coalesce(json_object_agg(state, number), '{}') FROM (
    SELECT state, count(*) AS number FROM outbox_delivery WHERE state <> 'succeeded' GROUP BY state
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
        lost: missing effects of committed rows.
        duplicates: effects of the plain and the ordered handler beyond the first of a row.
        transactional_duplicates: effects of the transactional handler beyond the first of a row.
        rolled_back: effects of rows that were rolled back.
        out_of_order: rows with which the ordered handler began before an earlier row of their ordering key
            was done.
    """

    committed: int
    lost: int
    duplicates: int
    transactional_duplicates: int
    rolled_back: int
    out_of_order: int


class Ledger:
    """Reads the tables of a database that may be down at any moment."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None

    def first_row(self, query: str, parameters: Any = None) -> list[Any]:
        """Return the first row of a query; try again while the database is away."""
        deadline = time.monotonic() + OUTAGE_S
        while True:
            try:
                return self._first_row(query, parameters)
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > deadline:
                    raise

    def execute(self, *statements: str) -> None:
        """Execute statements."""
        for statement in statements:
            self._connected().execute(statement.encode())

    def count(self, run: str) -> Count:
        """Compare the committed rows of a run with their effects."""
        return Count(*self.first_row(_COUNT, {"run": run, "handlers": list(HANDLERS)}))

    def effects(self, run: str) -> int:
        """Return how many effects a run has had."""
        return int(self.first_row("SELECT count(*) FROM faults_effect WHERE run = %s", [run])[0])

    def sales(self, run: str) -> int:
        """Return how many sales of a run are committed."""
        return int(self.first_row("SELECT count(*) FROM faults_sale WHERE run = %s", [run])[0])

    def unsettled(self) -> dict[str, int]:
        """Return the number of deliveries in each state other than `succeeded`."""
        counts: dict[str, int] = self.first_row(_UNSETTLED)[0]
        return counts

    def activity(self) -> str:
        """Return a line about each connection."""
        return str(self.first_row(_ACTIVITY)[0])

    def wait_until_complete(self, run: str) -> Count:
        """Wait until no effect is missing, or until missing effects count as lost."""
        deadline = time.monotonic() + LOST_AFTER_S
        while (count := self.count(run)).lost and time.monotonic() < deadline:
            time.sleep(0.02)
        return count

    def wait_until_settled(self) -> None:
        """Wait until all deliveries have succeeded."""
        wait_until(
            lambda: not self.unsettled(), LOST_AFTER_S, f"all deliveries to succeed: {self.unsettled()}"
        )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _first_row(self, query: str, parameters: Any) -> list[Any]:
        row = self._connected().execute(query.encode(), parameters).fetchone()
        return list(row) if row else []

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            # PostgreSQL has no current statistics of tables that have just grown, and would scan all effects
            # for each sale. That added half a second to the measured recovery.
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name=APPLICATION,
                options="-c enable_nestloop=off",
            )
        return self._connection
