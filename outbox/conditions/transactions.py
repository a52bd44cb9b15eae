"""Tell afterwards whether a part of a transaction was rolled back."""

from __future__ import annotations

import weakref

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

_latest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, Outcome] = weakref.WeakKeyDictionary()


class Outcome:
    """What became of the savepoint, or of the whole transaction, in which it was made.

    Django drops the on_commit hooks of whatever is rolled back, and nothing else holds this one: a hook that
    is gone without having been called tells of a rollback. The exception is a commit during which an earlier
    hook, not a robust one, raises: Django drops the later ones then too, and this reports a rollback.
    """

    def __init__(self, savepoints: tuple[str | None, ...]) -> None:
        self.savepoints = savepoints
        self.committed = False
        self._hook: weakref.ref[_Hook] | None = None

    @property
    def undone(self) -> bool:
        """Return whether it was rolled back."""
        return not self.committed and (self._hook is None or self._hook() is None)

    @property
    def open(self) -> bool:
        """Return whether it still can be rolled back."""
        return not self.committed and not self.undone

    def watch(self, using: str | None) -> None:
        """Follow the transaction that is open now."""
        hook = _Hook(self)
        self._hook = weakref.ref(hook)
        transaction.on_commit(hook, using=using, robust=True)


class _Hook:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def __call__(self) -> None:
        self.outcome.committed = True


def current_outcome(using: str | None) -> Outcome | None:
    """Return the outcome that what is written now will share, or None if it cannot be rolled back."""
    connection = transaction.get_connection(using)
    if not connection.in_atomic_block:
        return None
    savepoints = tuple(connection.savepoint_ids)
    outcome = _latest.get(connection)
    if outcome is None or not outcome.open or outcome.savepoints != savepoints:
        outcome = _latest[connection] = Outcome(savepoints)
        outcome.watch(using)
    return outcome
