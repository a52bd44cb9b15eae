"""A question to a database that may not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.db import connections

from outbox.own_connection import own_connection

from .deadlines import within

T = TypeVar("T")


def ask_within(timeout_s: float, database: str, ask: Callable[[], T]) -> T:
    """Return the result of a query, or give it up after `timeout_s`.

    On SQLite, and within a transaction such as a test case's, the query has no deadline.

    Raises:
        TimeoutError: if the database does not answer in time.
    """
    connection = connections[database]
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        return ask()

    def ask_over_own_connection() -> T:
        with own_connection(database):
            return ask()

    return within(timeout_s, ask_over_own_connection)
