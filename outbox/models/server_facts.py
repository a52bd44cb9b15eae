"""Settings and statistics of a PostgreSQL server, for the doctor and for metrics."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

# Settings are those of this session, as relays and workers have them. The oldest snapshot of other sessions
# decides which dead rows can be removed.
_FACTS = """
SELECT current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('autovacuum') AS autovacuum,
       current_setting('transaction_read_only') AS read_only,
       pg_is_in_recovery() AS in_recovery,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout')
           AS idle_timeout_ms,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout') AS statement_timeout_ms,
       current_setting('max_connections')::bigint AS max_connections,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       extract(epoch FROM clock_timestamp())::float8 AS now,
       coalesce(extract(epoch FROM clock_timestamp() - oldest.xact_start), 0)::float8 AS oldest_s,
       oldest.pid AS oldest_pid, oldest.application_name AS oldest_name
FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT xact_start, pid, application_name FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
    ORDER BY xact_start LIMIT 1
) AS oldest ON true
"""

_TABLES = """
SELECT name, coalesce(n_live_tup, 0) AS live, coalesce(n_dead_tup, 0) AS dead,
       coalesce('autovacuum_enabled=false' = ANY(reloptions), false) AS is_excluded
FROM unnest(%s::text[]) AS name
JOIN pg_class ON oid = to_regclass(quote_ident(name))
LEFT JOIN pg_stat_user_tables ON relid = oid
"""


def read_facts(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """Return the settings and the state of the server, in one statement; durations carry their unit."""
    (facts,) = _rows(connection, _FACTS, [])
    return facts


def read_tables(connection: BaseDatabaseWrapper, *tables: str) -> list[dict[str, Any]]:
    """Return PostgreSQL's estimates of live and dead rows, and whether autovacuum leaves a table out.

    On another database there are none.
    """
    if connection.vendor != "postgresql":
        return []
    return _rows(connection, _TABLES, [list(tables)])


def _rows(connection: BaseDatabaseWrapper, statement: str, parameters: list[Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
