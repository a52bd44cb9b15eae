"""The log of an outage: once with its cause, and once with the time after which it was over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any


class OutageLog:
    """Logs the outages of one task for one database, each end at the level of its beginning.

    Args:
        complaint: the text at the beginning, with a place for the database and the cause.
        recovery: the text at the end, with a place for the database and the seconds.
        clock: returns monotonic seconds.

    Attributes:
        cause: why the task does not work now; empty if it works.
    """

    def __init__(
        self,
        logger: logging.Logger,
        database: str,
        *,
        complaint: str,
        recovery: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cause = ""
        self._logger = logger
        self._database = database
        self._complaint = complaint
        self._recovery = recovery
        self._clock = clock
        self._since = 0.0

    def note_failure(self, cause: str, *, shown: str = "", exc_info: bool = False) -> None:
        """Log an outage that has just begun, or has another cause now.

        Args:
            shown: the text for the log, if it has more than the cause.
            exc_info: whether to log the traceback of the present exception.
        """
        if cause == self.cause:
            return
        if not self.cause:
            self._since = self._clock()
        self.cause = cause
        self._warn(self._complaint, shown or cause, error=cause, exc_info=exc_info)

    def note_success(self) -> None:
        """Log the end of an outage."""
        if self.cause:
            self.cause = ""
            duration_s = self._clock() - self._since
            self._warn(self._recovery, duration_s, duration_s=duration_s)

    def _warn(self, text: str, argument: Any, *, exc_info: bool = False, **fields: Any) -> None:
        extra = {"database": self._database, **fields}
        self._logger.warning(text, self._database, argument, exc_info=exc_info, extra=extra)
