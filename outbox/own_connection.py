"""The connections of relays and background threads: outside the project's pool, and with READ COMMITTED.

A relay and the thread that writes confirmations keep their connections. In a pool of few connections they
would leave none for others. At a higher isolation level a commit may fail after the broker has the messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

# A server, or a proxy in front of it, may accept a connection and then never answer.
CONNECT_TIMEOUT_S = 5


@contextmanager
def own_connection(database: str) -> Iterator[None]:
    """Give this thread its own connection to a database, and take it away at the end.

    The thread keeps the project's connection on SQLite, and within a transaction such as a test case's.
    """
    project = connections[database]
    if project.vendor != "postgresql" or project.in_atomic_block:
        yield
        return
    # The thread may have used it before; a pool needs it back.
    project.close()
    own = own_copy(project)
    connections[database] = own
    try:
        yield
    finally:
        own.close()
        connections[database] = project


@contextmanager
def own_connections(databases: Iterable[str]) -> Iterator[None]:
    """Give this thread its own connections to the databases with a pool or another isolation level."""
    with ExitStack() as stack:
        for database in databases:
            options = connections[database].settings_dict["OPTIONS"]
            if options.get("pool") or options.get("isolation_level") is not None:
                stack.enter_context(own_connection(database))
        yield


def own_copy(connection: BaseDatabaseWrapper, *, connect_timeout_s: int | None = None) -> BaseDatabaseWrapper:
    """Return a PostgreSQL connection of its own, still closed, to the same database.

    Args:
        connect_timeout_s: how long an attempt to connect may take; the project's timeout if not given.
    """
    # Imported late: a project on another database may have no psycopg.
    from psycopg import IsolationLevel

    copy: BaseDatabaseWrapper = connection.copy()
    options = copy.settings_dict["OPTIONS"]
    options.pop("pool", None)
    options["isolation_level"] = IsolationLevel.READ_COMMITTED
    if connect_timeout_s is not None:
        options["connect_timeout"] = connect_timeout_s
    elif "PGCONNECT_TIMEOUT" not in os.environ:
        options.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    return copy
