"""The handlers that a relay does not know: each is named once in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from outbox.operations.unknown_handlers import count_waiting, describe_waiting

logger = logging.getLogger(__name__)


class UnknownHandlers:
    """The unknown handlers of one relay's deliveries.

    Args:
        database: the alias of the database of the deliveries.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._named: set[str] = set()

    def report(self, handlers: Iterable[str]) -> None:
        """Log each handler that was not named before, with the number of its pending deliveries."""
        for handler in sorted(set(handlers) - self._named):
            count = count_waiting(self._database, handler)
            logger.warning(
                describe_waiting(handler, count),
                extra={"database": self._database, "handler": handler, "count": count},
            )
            self._named.add(handler)
