"""The claim as a prepared statement: the server plans it once for a connection, not for each claim.

Planning takes longer than a claim of few rows. But the plan must suit every later state of the tables. Only a
statement is prepared whose tables each have a single suitable index, so that no statistics can mislead the
planner. The claims of ordered deliveries and of batches have several.

Only a direct connection has prepared statements: a connection pooler may give each transaction another
session of the server.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from django.db import ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper

from .scan_cursor import Position

# Until the end of the transaction. The server would plan for each position anew; and a plan that was made for
# an empty table, or for old statistics, would read the whole table once it has grown. Compilation takes
# longer than any claim.
_PLANNING = "; ".join(
    (
        "SET LOCAL plan_cache_mode = force_generic_plan",
        "SET LOCAL enable_seqscan = off",
        "SET LOCAL enable_bitmapscan = off",
        "SET LOCAL jit = off",
    )
)

# SQLSTATEs: no such prepared statement, and its name is taken.
_SIGNS_OF_A_POOLER = ("26000", "42P05")

# Several claims may share a connection.
_numbers = count(1)


class PreparedStatements:
    """The prepared statements of one claim on its current connection."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._is_direct = False
        self._was_lost = False
        self._names: dict[tuple[str, str], str] = {}

    def run(
        self,
        wrapper: BaseDatabaseWrapper,
        statement: str,
        start: Position,
        parameters: dict[str, Any],
        *,
        prepare: bool,
    ) -> list[tuple[Any, ...]]:
        """Run a statement from a position; return its rows.

        Args:
            statement: with the placeholders `due_at` and `id` for the position.
            parameters: all other values. If the statement is prepared, there are few combinations of them,
                as each combination takes memory of the server.
            prepare: prepare the statement if the connection is a direct one.

        Raises:
            ProgrammingError: once, if a pooler has given the connection another session of the server.
        """
        with wrapper.cursor() as cursor:
            if not (prepare and self._run_prepared(wrapper, cursor, statement, start, parameters)):
                cursor.execute(statement, {**parameters, "due_at": start.due_at, "id": start.id})
            return list(cursor.fetchall())

    def _run_prepared(
        self,
        wrapper: BaseDatabaseWrapper,
        cursor: Any,
        statement: str,
        start: Position,
        parameters: dict[str, Any],
    ) -> bool:
        """Run a statement if it can be prepared; return whether it has run."""
        if wrapper.connection is not self._connection:
            self._meet(wrapper, cursor)
        if not self._is_direct or self._was_lost:
            return False
        try:
            name = self._name(wrapper, cursor, statement, parameters)
            # One round trip. No parameters: server-side binding has none for EXECUTE.
            cursor.execute(f"{_PLANNING}; EXECUTE {name} ('{start.due_at}', {start.id})")
        except ProgrammingError as error:
            if getattr(error.__cause__, "sqlstate", None) in _SIGNS_OF_A_POOLER:
                self._was_lost = True
            raise
        # The last result is that of the claim.
        while cursor.nextset():
            continue
        return True

    def _meet(self, wrapper: BaseDatabaseWrapper, cursor: Any) -> None:
        """Check whether a new connection is a direct one: a pooler invents the process id."""
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        self._is_direct = pid == wrapper.connection.info.backend_pid
        self._connection = wrapper.connection
        self._names = {}

    def _name(
        self, wrapper: BaseDatabaseWrapper, cursor: Any, statement: str, parameters: dict[str, Any]
    ) -> str:
        """Return the name of a prepared statement, which is prepared on first use."""
        values = (statement, repr(parameters))
        if values not in self._names:
            # Imported late: a project on another database may have no psycopg.
            from psycopg import ClientCursor

            text = statement.replace("%(due_at)s", "$1").replace("%(id)s", "$2")
            name = f"outbox_delivery_claim_{next(_numbers)}"
            with ClientCursor(wrapper.connection) as binding:
                cursor.execute(f"PREPARE {name} AS {binding.mogrify(text, parameters)}")
            self._names[values] = name
        return self._names[values]
