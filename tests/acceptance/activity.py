"""The connections of relays, read from pg_stat_activity."""

from __future__ import annotations

from django.db import connection

APPLICATION = "relay"

_OF_RELAYS = (
    f"FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{APPLICATION}'"
)


def number(sql: str) -> float:
    """Return the number that a query returns; 0 for null."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return float(cursor.fetchone()[0] or 0)


def idle_s(application: str = APPLICATION) -> float:
    """Return the seconds since a relay last checked for work or wrote its heartbeat.

    The queries of its maintenance thread do not count.
    """
    return number(
        "SELECT extract(epoch FROM clock_timestamp() - max(query_start)) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND application_name = '{application}' "
        "AND query ~ 'AS always|UPDATE \"outbox_processheartbeat\"'"
    )


def connections_of_relays() -> float:
    """Return the number of connections of relays and their supervisors."""
    return number(f"SELECT count(*) {_OF_RELAYS}")


def listening() -> float:
    """Return the number of relays that listen."""
    return number(f"SELECT count(*) {_OF_RELAYS} AND query ~ 'LISTEN'")


def in_a_transaction() -> float:
    """Return the number of relays between claim and commit, which wait for their broker."""
    return number(f"SELECT count(*) {_OF_RELAYS} AND state = 'idle in transaction'")
