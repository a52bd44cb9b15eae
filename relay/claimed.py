"""One row of the claim statement."""

from __future__ import annotations

from typing import NamedTuple

from outbox.versions import UNWRITTEN, WRITTEN


class Claimed(NamedTuple):
    """A delivery that was claimed, with its event."""

    delivery_id: int
    event_id: str  # the text of a UUID
    handler: str
    queue: str
    key: str
    attempts: int
    redeliveries: int
    topic: str
    payload: str  # JSON text, as the database gave it
    headers: str  # likewise
    created_at: str  # ISO 8601
    expired: bool = False  # by the database clock
    dispatched_at_us: int = 0  # likewise, in microseconds since 1970
    version: int = UNWRITTEN

    @property
    def message_version(self) -> int:
        """The version of a message that carries this row's payload as it is."""
        return self.version if self.version > WRITTEN else WRITTEN
