"""What PostgreSQL says about the connections of relays."""

from __future__ import annotations

from django.db import connection

APPLICATION = "relay"

_OF_RELAYS = (
    f"FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{APPLICATION}'"
)


def ask(question: str) -> float:
    """Return the single number that a query finds; 0 for none."""
    with connection.cursor() as cursor:
        cursor.execute(question)
        return float(cursor.fetchone()[0] or 0)


def quiet_s() -> float:
    """Return for how long no relay has looked for work."""
    since = "SELECT extract(epoch FROM clock_timestamp() - max(query_start))"
    return ask(f"{since} {_OF_RELAYS} AND query !~ 'LISTEN'")


def connections_of_relays() -> float:
    """Return how many connections relays have, and whoever started them."""
    return ask(f"SELECT count(*) {_OF_RELAYS}")


def listening() -> float:
    """Return how many relays listen."""
    return ask(f"SELECT count(*) {_OF_RELAYS} AND query ~ 'LISTEN'")


def in_a_transaction() -> float:
    """Return how many relays are between claim and commit, waiting for their broker."""
    return ask(f"SELECT count(*) {_OF_RELAYS} AND state = 'idle in transaction'")
