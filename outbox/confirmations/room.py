"""Back-pressure: worker threads wait while a buffer is full."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

logger = logging.getLogger(__name__)


class Room:
    """Lets threads wait for room in the buffer of one database.

    Args:
        database: the alias of the database.
        is_full: whether the buffer has reached one of its bounds.
    """

    def __init__(self, database: str, is_full: Callable[[], bool]) -> None:
        self._database = database
        self._is_full = is_full
        # A token for one waiting thread. The queue blocks in C, where an interrupt leaves no lock behind.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._awaited = False

    def wait(self, waits: Callable[[], bool], interval_s: float) -> None:
        """Wait until the buffer is no longer full, or until `waits` returns False.

        Args:
            interval_s: the longest time between two checks.
        """
        while self._is_full() and waits():
            if not self._awaited:
                self._awaited = True
                logger.warning("the buffer of outcomes of database %r is full; workers wait", self._database)
            with suppress(Empty):
                self._tokens.get(timeout=interval_s)

    def check(self) -> None:
        """Wake a waiting thread if there is room now; the other threads follow at their next check."""
        if self._awaited and not self._is_full():
            self._awaited = False
            self._tokens.put(None)
