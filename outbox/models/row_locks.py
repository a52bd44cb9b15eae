"""Locks that wait for nobody: rows that another transaction has locked are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connections, models, transaction

Rows = TypeVar("Rows", bound="models.QuerySet[Any]")

# Row locks are skipped. This limits the wait for a lock on the whole table, as a migration takes one.
_LIMIT_WAITS = "SET LOCAL lock_timeout = '1s'"


def unlocked(rows: Rows) -> Rows:
    """Lock rows for this transaction; skip rows that another transaction has locked."""
    if connections[rows.db].features.has_select_for_update_skip_locked:
        return rows.select_for_update(skip_locked=True)
    return rows


@contextmanager
def brief_transaction(database: str) -> Iterator[None]:
    """Open a transaction that waits at most a second for a lock.

    The limit is part of the transaction, as a pooler may give the session to another client. It is not set
    within a transaction of the project.
    """
    connection = connections[database]
    is_own = connection.vendor == "postgresql" and not connection.in_atomic_block
    with transaction.atomic(using=database):
        if is_own:
            with connection.cursor() as cursor:
                cursor.execute(_LIMIT_WAITS)
        yield
