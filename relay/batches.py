"""Deliveries of a batched handler travel together, as one message that carries a list of events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dramatiq import Actor, Message
from dramatiq.common import current_millis

from .messages import Claimed, Outgoing, message_id_for


class OutgoingBatch(Outgoing):
    """Claimed deliveries of one batched handler on their way to the broker.

    Args:
        rows: at least one, all of one handler, in the order of publication.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Claimed], actor: Actor[..., Any], database: str) -> None:
        super().__init__(rows[0], actor=actor, kind="event", database=database)
        self.rows = rows

    def message(self) -> Message[Any]:
        """Build the message.

        Raises:
            ValueError: if a payload or the headers of an event are not JSON.
        """
        options: dict[str, Any] = {} if self.priority is None else {"broker_priority": self.priority}
        outbox = {
            "v": max(row.message_version for row in self.rows),
            "database": self.database,
            "deliveries": [row.delivery_id for row in self.rows],
        }
        return Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            args=([_envelope(row) for row in self.rows],),
            kwargs={},
            options={**options, "outbox": outbox},
            # The batch of a first event: which others share it may differ when it is sent again.
            message_id=message_id_for(self.claimed.event_id, f"{self.claimed.handler} batch"),
            message_timestamp=current_millis(),
        )

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, `extra_options` added to its options.

        Raises:
            ValueError: as `message` does.
        """
        return self.message().copy(options=extra_options).encode()


def rows_of(outgoing: Outgoing) -> Sequence[Claimed]:
    """Return the claimed rows that a message carries."""
    return outgoing.rows if isinstance(outgoing, OutgoingBatch) else (outgoing.claimed,)


def _envelope(row: Claimed) -> dict[str, Any]:
    return {
        "id": str(row.event_id),
        "topic": row.topic,
        "key": row.key,
        "payload": json.loads(row.payload),
        "headers": json.loads(row.headers),
        "created_at": row.created_at,
    }
