"""The event as a handler receives it, and the identity of its deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

MAX_KEY_LENGTH = 255


class DeliveryRef(NamedTuple):
    """The identity of a delivery: a restored or truncated table may give its id to another event's delivery.

    Args:
        id: the primary key of the row.
        event_id: the text of the UUID of its event.
    """

    id: int
    event_id: str


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as a handler receives it.

    Args:
        id: the event's UUIDv7, the same for every handler and every redelivery: a good idempotency key.
        payload: the published payload, after a round trip through JSON.
        headers: the publisher's headers, with `context`, `correlation_id` and `causation_id` if known.
        created_at: when it was published, by the database clock.
        replayed: whether an operator has replayed it, so that the handler may have had it before.
    """

    id: UUID
    topic: str
    key: str = ""
    payload: Any = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None
    replayed: bool = False

    @classmethod
    def from_message(cls, envelope: Mapping[str, Any]) -> ReceivedEvent:
        """Build the event from its envelope in a Dramatiq message."""
        created_at = envelope.get("created_at")
        return cls(
            id=_uuid(envelope["id"]),
            topic=envelope["topic"],
            key=envelope.get("key", ""),
            payload=envelope.get("payload"),
            headers=_mapping(envelope.get("headers")),
            created_at=datetime.fromisoformat(created_at) if created_at else None,
            replayed="replayed" in envelope,
        )

    @property
    def context(self) -> Mapping[str, Any]:
        """Return the context in which the event was published."""
        return _mapping(self.headers.get("context"))

    @property
    def correlation_id(self) -> str:
        """Return the id of the first event of the chain; a root event's is its own id."""
        return str(self.headers.get("correlation_id") or self.id)


def _uuid(text: str) -> UUID:
    # The relay writes 36 characters. For other forms the class does more checks.
    return UUID(int=int(text.replace("-", ""), 16)) if len(text) == 36 else UUID(text)


def _mapping(value: Any) -> Mapping[str, Any]:
    # Rows may have been written by hand. The check for a dict takes a tenth of the check for a mapping.
    return value if type(value) is dict or isinstance(value, Mapping) else {}
