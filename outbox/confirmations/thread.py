"""The thread that flushes buffered outcomes and counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from django.db import connections

from outbox.conf import get_settings
from outbox.own_connection import own_connections

from .policy import FlushPolicy


class Work(Enum):
    """The content of the buffers that a flush would write."""

    NONE = 0
    ONLY_COUNTS = 1
    OUTCOMES = 2


class FlushThread(threading.Thread):
    """Flushes whenever there is work, and retries failed flushes.

    Args:
        wait_for_work: waits for work, and returns `Work.NONE` when the thread is to end.
        flush: writes all work, and returns whether nothing is left.
        policy: the delays of the retries.
        stop_retrying: set when the thread is to end with work left.
    """

    def __init__(
        self,
        *,
        wait_for_work: Callable[[], Work],
        flush: Callable[[], bool],
        policy: FlushPolicy,
        stop_retrying: threading.Event,
    ) -> None:
        super().__init__(name="outbox-confirmations", daemon=True)
        self._wait_for_work = wait_for_work
        self._flush = flush
        self._policy = policy
        self._stop_retrying = stop_retrying

    def run(self) -> None:
        """Flush until there is no work and none is to be awaited."""
        with own_connections(get_settings().databases):
            self._flush_until_the_end()

    def _flush_until_the_end(self) -> None:
        retry_s = self._policy.min_retry_s
        try:
            while (work := self._wait_for_work()) is not Work.NONE and not self._stop_retrying.is_set():
                if not self._flush():
                    # A shutdown does not end this wait: until its timeout, the retry may succeed.
                    self._stop_retrying.wait(retry_s)
                    retry_s = min(2 * retry_s, self._policy.max_retry_s)
                    continue
                retry_s = self._policy.min_retry_s
                if work is Work.ONLY_COUNTS:
                    # A web process needs no second connection until the next flush of counts.
                    connections.close_all()
        finally:
            connections.close_all()
