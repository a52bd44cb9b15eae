"""Count the statements that reach the database, from the connections of all threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created


class Statements:
    """The statements since the count began, with BEGIN and COMMIT."""

    def __init__(self) -> None:
        self._counted: list[tuple[BaseDatabaseWrapper, int]] = []

    def add(self, wrapper: BaseDatabaseWrapper) -> None:
        """Count the statements of a connection from now on."""
        wrapper.force_debug_cursor = True
        if any(wrapper is known for known, _skip in self._counted):
            # The connection was closed and opened again.
            return
        self._counted.append((wrapper, len(wrapper.queries_log)))

    def texts(self) -> list[str]:
        """Return the SQL of the statements."""
        return [query["sql"] for wrapper, skip in self._counted for query in list(wrapper.queries_log)[skip:]]

    def stop(self) -> None:
        """Stop counting."""
        for wrapper, _skip in self._counted:
            wrapper.force_debug_cursor = False


@contextmanager
def counted() -> Iterator[Statements]:
    """Count the statements of this thread's connection, and of each connection that is opened meanwhile."""
    statements = Statements()

    def count(sender: Any, connection: BaseDatabaseWrapper, **_more: Any) -> None:
        statements.add(connection)

    # Not `connection`: it is another object in each thread.
    own = connections[DEFAULT_DB_ALIAS]
    own.queries_log.clear()
    statements.add(own)
    connection_created.connect(count)
    try:
        yield statements
    finally:
        connection_created.disconnect(count)
        statements.stop()
