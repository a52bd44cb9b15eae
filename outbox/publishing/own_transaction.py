"""Tell a transaction of the code under test from the transaction that a `TestCase` opens around it."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


def has_own_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the caller has opened a transaction; the blocks of a `TestCase` do not count.

    Django tells them apart in the same way when it checks `atomic(durable=True)`. The blocks of a `TestCase`
    are the outermost ones, so the innermost block decides.
    """
    blocks: list[Any] = connection.atomic_blocks
    return bool(blocks) and not blocks[-1]._from_testcase
