"""The counts of monitored functions, deferred so that no thread writes them during a test."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from outbox.confirmations import confirmations


@contextmanager
def deferred_counts() -> Generator[None]:
    """Keep the counts of monitored functions in memory inside the block, and drop them at its end.

    Otherwise a thread would write the counts over its own connection: outside the test's transaction, and
    while the test database is to be dropped. The pytest plugin defers the counts of every test.
    """
    before, confirmations.defers_counts = confirmations.defers_counts, True
    try:
        yield
    finally:
        confirmations.defers_counts = before
        confirmations.drop_counts()


def flush_counts() -> None:
    """Write the counts of monitored functions in the test's own transaction.

    Raises:
        RuntimeError: if the database refuses the counts; the log has the reason.
    """
    if not confirmations.flush():
        raise RuntimeError(
            "not all counts could be written; the reason is in the log of outbox.confirmations"
        )
