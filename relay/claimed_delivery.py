"""One row of the claim statement."""

from __future__ import annotations

from typing import NamedTuple

from outbox.versions import UNWRITTEN, WRITTEN


class ClaimedDelivery(NamedTuple):
    """A claimed delivery, with its event."""

    delivery_id: int
    event_id: str  # the text of a UUID
    handler: str
    queue: str
    key: str
    attempts: int
    redeliveries: int
    resends: int
    topic: str
    payload: str  # JSON text from the database
    headers: str  # JSON text from the database
    created_at: str  # ISO 8601
    expired: bool = False  # by the database clock
    dispatched_at_us: int = 0  # microseconds since 1970, by the database clock
    version: int = UNWRITTEN
    message_options: str = ""  # JSON text that a retry has stored, empty without a retry
    replayed: bool = False  # written by a replay of an old event

    @property
    def earlier_messages(self) -> int:
        """How many earlier messages of this delivery a worker may still receive."""
        return self.redeliveries + self.resends

    @property
    def message_version(self) -> int:
        """The version of a message that carries this row's payload unchanged."""
        return self.version if self.version > WRITTEN else WRITTEN
