"""Deliveries of one handler that travel together, as one message that carries a list of events.

A batch is one run of a handler that takes a list. A pack holds up to so many runs of a handler that takes one
event: it only saves the broker and Dramatiq what each message costs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dramatiq import Message

from .claimed import Claimed
from .ids import message_id_for
from .messages import Outgoing, envelope
from .splicing import Template, encode_value, spliced_envelope


class OutgoingList(Outgoing):
    """Claimed deliveries of one handler on their way to the broker in one message.

    Args:
        rows: at least one, in the order in which they are to be handled.
    """

    __slots__ = ()

    # What the message id is made of, beside the first event and the handler: which others share the message
    # may differ when it is sent again.
    noun = ""

    def __init__(self, rows: Sequence[Claimed], template: Template) -> None:
        super().__init__(rows[0], template)
        self.rows = rows

    @property
    def message_id(self) -> str:
        """The id of the message."""
        return message_id_for(self.claimed.event_id, f"{self.claimed.handler} {self.noun}")

    def message(self) -> Message[Any]:
        """Build the message.

        Raises:
            ValueError: if a payload or the headers of an event are not JSON.
        """
        return Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            args=([envelope(row) for row in self.rows],),
            kwargs={},
            options=self._options(),
            message_id=self.message_id,
            message_timestamp=self.template.timestamp_ms,
        )

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, `extra_options` added to its options.

        Raises:
            ValueError: as `message` does.
        """
        if not self.template.is_spliced:
            return self.message().copy(options=extra_options).encode()
        events = ",".join(map(spliced_envelope, self.rows))
        return self.template.of(
            f'"args":[[{events}]],"kwargs":{{}}',
            encode_value(self._options())[1:-1],
            self.message_id,
            extra_options,
        )

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.priority is None else {"broker_priority": self.priority}
        version = max(row.message_version for row in self.rows)
        return {**options, "outbox": {"v": version, "database": self.template.database, **self._of_rows()}}

    def _of_rows(self) -> dict[str, Any]:
        """Return what the "outbox" option says of the deliveries."""
        raise NotImplementedError


class OutgoingBatch(OutgoingList):
    """Deliveries of a batched handler, which are handled as one, in the order of publication."""

    __slots__ = ()

    noun = "batch"

    def _of_rows(self) -> dict[str, Any]:
        return {"deliveries": [row.delivery_id for row in self.rows]}


class OutgoingPack(OutgoingList):
    """Deliveries of a packed handler, which are handled one after the other.

    Args:
        size: how many there may be at most.
    """

    __slots__ = ("size",)

    noun = "pack"

    def __init__(self, rows: Sequence[Claimed], template: Template, *, size: int) -> None:
        super().__init__(rows, template)
        self.size = size

    def one_by_one(self) -> list[OutgoingPack]:
        """Return a pack of each of the deliveries."""
        return [OutgoingPack([row], self.template, size=self.size) for row in self.rows]

    def _of_rows(self) -> dict[str, Any]:
        # A worker that does not know packs must not take this for a batch: hence a name of its own.
        option: dict[str, Any] = {"pack": [row.delivery_id for row in self.rows]}
        retries = [_retries(row) for row in self.rows]
        if any(retries):
            option["retries"] = retries
        redelivered = max(row.redeliveries for row in self.rows)
        if redelivered > 0:
            option["redelivered"] = redelivered
        return option


def _retries(row: Claimed) -> int:
    # Each retry of a packed delivery is another dispatch. One after which nobody confirmed it was no try.
    return max(row.attempts - 1 - row.redeliveries, 0)
