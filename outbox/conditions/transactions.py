"""Find out whether an atomic block was committed or rolled back."""

from __future__ import annotations

import weakref
from itertools import takewhile
from typing import Any, NamedTuple

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

_latest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, Transaction] = weakref.WeakKeyDictionary()


class AtomicBlock(NamedTuple):
    """A savepoint, or the whole transaction, and how it ended."""

    transaction: Transaction
    savepoints: tuple[str, ...]

    @property
    def committed(self) -> bool:
        """Return whether the block was committed."""
        return self.transaction.committed and not self._undone

    @property
    def rolled_back(self) -> bool:
        """Return whether the block was rolled back."""
        return self.transaction.rolled_back or self._undone

    @property
    def _undone(self) -> bool:
        return not self.transaction.undone_savepoints.isdisjoint(self.savepoints)

    def without_released(self) -> AtomicBlock:
        """Return the innermost enclosing block that can still be rolled back.

        A released savepoint is rolled back only together with the block around it.
        """
        still_open = self.transaction.open_savepoints()
        kept = tuple(takewhile(still_open.__contains__, self.savepoints))
        return self if kept == self.savepoints else AtomicBlock(self.transaction, kept)


class Transaction:
    """A database transaction, and how it and its savepoints ended.

    Django calls the on_commit hooks of a transaction that is committed, and drops those of a transaction that
    is rolled back. Nothing else refers to the hook of this object, so a dropped hook shows a rollback.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.committed = False
        self.undone_savepoints: set[str] = set()
        self._connection = weakref.ref(connection)
        hook = _Hook(self)
        self._hook = weakref.ref(hook)
        entry: Any = (_Savepoints(self), hook, True)
        # First, because Django drops the hooks behind a hook that raises. In a TestCase, which never commits,
        # the earlier hooks keep their places, because `captureOnCommitCallbacks()` counts them.
        outermost: Any = connection.atomic_blocks[0]
        place = len(connection.run_on_commit) if outermost._from_testcase else 0
        connection.run_on_commit.insert(place, entry)

    @property
    def rolled_back(self) -> bool:
        """Return whether the whole transaction was rolled back."""
        return not self.committed and self._hook() is None

    @property
    def open(self) -> bool:
        """Return whether the transaction can still be rolled back."""
        return not self.committed and not self.rolled_back

    def open_savepoints(self) -> frozenset[str]:
        """Return the savepoints that the connection can still roll back."""
        connection = self._connection()
        return frozenset(_savepoints_of(connection) if connection else ())


class _Hook:
    def __init__(self, ended: Transaction) -> None:
        self.transaction = ended

    def __call__(self) -> None:
        self.transaction.committed = True


class _Savepoints(set[str]):
    """The savepoints of a hook, for Django, which asks each hook whether a savepoint drops it.

    One hook per transaction therefore hears of all its savepoints; a hook per savepoint would stay until the
    end of the transaction.
    """

    def __init__(self, told: Transaction) -> None:
        super().__init__()
        self.transaction = told

    def __contains__(self, rolled_back: object) -> bool:
        self.transaction.undone_savepoints.add(str(rolled_back))
        return False


def current_atomic_block(using: str | None) -> AtomicBlock | None:
    """Return the innermost open atomic block, or None in autocommit mode."""
    connection = transaction.get_connection(using)
    if not connection.in_atomic_block:
        return None
    latest = _latest.get(connection)
    if latest is None or not latest.open:
        latest = _latest[connection] = Transaction(connection)
    return AtomicBlock(latest, _savepoints_of(connection))


def _savepoints_of(connection: BaseDatabaseWrapper) -> tuple[str, ...]:
    # None stands for a block with savepoint=False, which is rolled back only with the block around it.
    return tuple(filter(None, connection.savepoint_ids))
