"""The rows of an event and its deliveries before they are written."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

NO_HEADERS = "{}"


class NewDelivery(NamedTuple):
    """A delivery about to be written, without the fields that depend on its event.

    Args:
        ordered: whether the event's key is its ordering key.
        waits_for: a value of `Delivery.WaitsFor`, or empty.
        wait: the time from the event's due time to the delivery's.
    """

    handler: str
    queue: str
    ordered: bool = False
    waits_for: str = ""
    wait: timedelta = timedelta()

    def ordering_key(self, key: str) -> str:
        """Return the ordering key for an event with this key, empty for none."""
        return key if self.ordered else ""


class NewEvent(NamedTuple):
    """An event about to be written; payload and headers are JSON text.

    Args:
        due: a moment, or a time after the statement, by the database clock.
        expires: a moment, or a time after the statement; None for never.
    """

    id: UUID
    topic: str
    key: str
    payload: str
    headers: str
    dedup_key: str | None
    deliveries: tuple[NewDelivery, ...]
    due: datetime | timedelta = timedelta()
    expires: datetime | timedelta | None = None
