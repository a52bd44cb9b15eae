"""The counts of monitored functions, which in a test no thread may write behind its back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from outbox.confirmations import confirmations


@contextmanager
def held_counts() -> Generator[None]:
    """Keep what monitored functions count in memory inside the block, and forget it at its end.

    Otherwise a thread would write it over a connection of its own: past the test's transaction, and in the
    way of whoever drops the test database. The pytest plugin does this for every test.
    """
    before, confirmations.holds_counts = confirmations.holds_counts, True
    try:
        yield
    finally:
        confirmations.holds_counts = before
        confirmations.drop_counts()


def flush_counts() -> None:
    """Write what monitored functions have counted, in the test's own transaction.

    Raises:
        RuntimeError: if the database refuses it; the log says why.
    """
    if not confirmations.flush():
        raise RuntimeError("not all counts could be written; the log of outbox.confirmations says why")
