"""The examination of PostgreSQL: durability, limits, clocks, and the cleaning of dead rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.conf import get_settings
from outbox.models.row_locks import brief_transaction
from outbox.models.server_facts import read_facts, read_tables

from .finding import Finding

MAX_SKEW_S = 5.0
OLD_TRANSACTION_S = 600.0
# A relay, a worker of 8 threads and a web process need some connections more.
MIN_FREE_CONNECTIONS = 10
MIN_STATEMENT_TIMEOUT_MS = 5000
# So many dead rows, and more of them than live rows, show that autovacuum does not keep pace.
MANY_DEAD_ROWS = 100_000


def examine(connection: BaseDatabaseWrapper) -> Iterator[Finding]:
    """Yield the findings about a PostgreSQL server; none for another database."""
    if connection.vendor != "postgresql":
        return
    with brief_transaction(connection.alias):
        before = time.time()
        facts = read_facts(connection)
        host_time = (before + time.time()) / 2
        tables = read_tables(connection, "outbox_event", "outbox_delivery", "outbox_handlerstats")
    yield from _durability(facts)
    yield from _limits(facts)
    skew_s = abs(facts["now"] - host_time)
    if skew_s > MAX_SKEW_S:
        yield Finding.of("clock-skew", f"the clocks of this host and the database differ by {skew_s:.0f} s")
    if facts["oldest_s"] > OLD_TRANSACTION_S:
        yield Finding.of(
            "old-transaction",
            f"process {facts['oldest_pid']} of the database ({facts['oldest_name'] or 'no name'}) has a"
            f" transaction open for {facts['oldest_s'] / 60:.0f} min",
        )
    yield from _dead_rows(facts, tables)


def _durability(facts: dict[str, Any]) -> Iterator[Finding]:
    if facts["fsync"] != "on":
        yield Finding.of("fsync-off", f"fsync is {facts['fsync']}")
    if facts["synchronous_commit"] == "off":
        yield Finding.of("synchronous-commit-off", "synchronous_commit is off")
    if facts["in_recovery"] or facts["read_only"] == "on":
        yield Finding.of("read-only", "the server accepts no writes: it is a replica, or read-only")


def _limits(facts: dict[str, Any]) -> Iterator[Finding]:
    limit_ms = get_settings().dispatch_timeout.total_seconds() * 1000
    idle_ms = facts["idle_timeout_ms"]
    if 0 < idle_ms <= limit_ms:
        yield Finding.of(
            "idle-timeout", f"idle_in_transaction_session_timeout is {idle_ms} ms, within DISPATCH_TIMEOUT"
        )
    if 0 < facts["statement_timeout_ms"] < MIN_STATEMENT_TIMEOUT_MS:
        yield Finding.of("statement-timeout", f"statement_timeout is {facts['statement_timeout_ms']} ms")
    free = facts["max_connections"] - facts["connections"]
    if free < MIN_FREE_CONNECTIONS:
        yield Finding.of(
            "few-connections", f"only {free} of {facts['max_connections']} connections of the server are free"
        )


def _dead_rows(facts: dict[str, Any], tables: list[dict[str, Any]]) -> Iterator[Finding]:
    if facts["autovacuum"] != "on":
        yield Finding.of("autovacuum-off", "autovacuum is off for the server")
    for table in tables:
        if table["is_excluded"]:
            yield Finding.of("autovacuum-off", f"autovacuum is off for the table {table['name']}")
        if table["dead"] > max(MANY_DEAD_ROWS, table["live"]):
            yield Finding.of("dead-rows", f"the table {table['name']} has {table['dead']:,} dead rows")
