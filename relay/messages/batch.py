"""Deliveries of a batch handler that share one message, which carries a list of events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dramatiq import Message

from relay.claimed_delivery import ClaimedDelivery

from .message_ids import message_id_for
from .single import OutgoingMessage, envelope
from .template import Template, encode_value, envelope_text


class OutgoingBatch(OutgoingMessage):
    """Claimed deliveries of a batch handler, which are one message and one run.

    Args:
        rows: at least one, in the order of publication.
    """

    __slots__ = ()

    def __init__(self, rows: Sequence[ClaimedDelivery], template: Template) -> None:
        super().__init__(rows[0], template)
        self.rows = rows

    @property
    def message_id(self) -> str:
        """The id of the message: only of the first event, as a redelivery may combine other deliveries."""
        return message_id_for(self.claimed.event_id, f"{self.claimed.handler} batch")

    def message(self) -> Message[Any]:
        """Build the message.

        Raises:
            ValueError: if a payload or the headers of an event are not JSON.
        """
        stored = self._stored_options()
        return Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            args=([envelope(row) for row in self.rows],),
            kwargs={},
            message_timestamp=stored.pop("message_timestamp", self.template.timestamp_ms),
            options={**self._options(), **stored},
            message_id=self.message_id,
        )

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, with `extra_options` added to its options.

        Raises:
            ValueError: if a payload or the headers of an event are not JSON.
        """
        if not self.template.builds_text or any(row.message_options for row in self.rows):
            return self.message().copy(options=extra_options).encode()
        events = ",".join(map(envelope_text, self.rows))
        return self.template.body(
            f'"args":[[{events}]],"kwargs":{{}}',
            encode_value(self._options())[1:-1],
            self.message_id,
            extra_options,
        )

    def _stored_options(self) -> dict[str, Any]:
        """Return the stored options of the deliveries; those of the delivery with most retries win."""
        stored = [json.loads(row.message_options) for row in self.rows if row.message_options]
        stored.sort(key=lambda options: options.get("retries", 0))
        return {name: value for options in stored for name, value in options.items()}

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.priority is None else {"broker_priority": self.priority}
        version = max(row.message_version for row in self.rows)
        outbox = {
            "v": version,
            "database": self.template.database,
            "deliveries": [row.delivery_id for row in self.rows],
        }
        return {**options, "outbox": outbox}
