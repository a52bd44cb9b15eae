"""A gate in the database that stops relays between the dispatch of a batch and its commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.conftest import database_url
from tests.support.processes import wait_until

KEY = 4711

# A deferred constraint trigger runs within COMMIT, when the broker already has the batch.
CREATE = f"""
CREATE OR REPLACE FUNCTION outbox_test_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({KEY});
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER outbox_test_gate AFTER UPDATE ON outbox_delivery
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.state = 'pending' AND NEW.state = 'dispatched') EXECUTE FUNCTION outbox_test_gate();
"""

DROP = "DROP TRIGGER outbox_test_gate ON outbox_delivery"

WAITING = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND NOT granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# By default the server checks its client only between statements. It would still execute the COMMIT of a
# killed relay once the gate opens. With this option the server notices the death before.
NOTICE_DEATH = {"PGOPTIONS": "-c client_connection_check_interval=50ms"}


class Gate:
    """Delays the commits of relays while it is shut."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._connection.execute("SELECT pg_advisory_lock(%s)", [KEY])

    def open(self) -> None:
        """Let all commits pass from now on."""
        self._connection.execute("SELECT pg_advisory_unlock_all()")

    def wait_for(self, relays: int) -> None:
        """Wait until this many relays wait at the gate."""
        wait_until(lambda: self._waiting() == relays, what=f"{relays} relays to reach their commit")

    def _waiting(self) -> int:
        row = self._connection.execute(WAITING).fetchone()
        return row[0] if row else 0


@contextmanager
def shut_gate() -> Iterator[Gate]:
    """Shut the gate of the tests' database; open and remove it at the end."""
    with psycopg.connect(database_url(), autocommit=True) as connection:
        connection.execute(CREATE)
        gate = Gate(connection)
        try:
            yield gate
        finally:
            gate.open()
            connection.execute(DROP)
