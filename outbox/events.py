"""What a handler receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as it reaches a handler.

    Args:
        id: the event's UUIDv7, the same for every handler and every redelivery: a good idempotency key.
        payload: what was published, after a round trip through JSON.
        headers: the publisher's headers, with `context`, `correlation_id` and `causation_id` where known.
        created_at: when it was published, by the database clock.
    """

    id: UUID
    topic: str
    key: str = ""
    payload: Any = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None

    @classmethod
    def from_message(cls, envelope: Mapping[str, Any]) -> ReceivedEvent:
        """Build the event from the envelope that travels in a Dramatiq message."""
        created_at = envelope.get("created_at")
        return cls(
            id=UUID(envelope["id"]),
            topic=envelope["topic"],
            key=envelope.get("key", ""),
            payload=envelope.get("payload"),
            headers=_mapping(envelope.get("headers")),
            created_at=datetime.fromisoformat(created_at) if created_at else None,
        )

    @property
    def context(self) -> Mapping[str, Any]:
        """Return the context in which it was published."""
        return _mapping(self.headers.get("context"))

    @property
    def correlation_id(self) -> str:
        """Return the id of the event that started the chain: its own, for a root."""
        return str(self.headers.get("correlation_id") or self.id)


def _mapping(value: Any) -> Mapping[str, Any]:
    # Rows may have been written by hand. To ask for a dict first takes a tenth of asking for a mapping.
    return value if type(value) is dict or isinstance(value, Mapping) else {}
