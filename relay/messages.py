"""What becomes of a claimed delivery: a Dramatiq message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict, cast

from dramatiq import Message

from .claimed import Claimed
from .ids import message_id_for
from .splicing import Template

# Types of the parts of an actor's payload. All but "options" are required.
CALL_PARTS = {"args": list, "kwargs": dict, "options": dict}


class Call(TypedDict, total=False):
    """The payload of an event that is an actor's message."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


class Outgoing:
    """A claimed delivery on its way to the broker, encoded as late and as little as the encoder allows.

    Attributes:
        rows: what it carries; of more than one the first is `claimed`.
    """

    __slots__ = ("_call", "claimed", "rows", "template")

    def __init__(self, claimed: Claimed, template: Template) -> None:
        self.claimed = claimed
        self.rows: Sequence[Claimed] = (claimed,)
        self.template = template
        self._call: Call | None = None

    def __repr__(self) -> str:
        return f"<Outgoing delivery {self.delivery_id} to {self.claimed.handler}>"

    @property
    def delivery_id(self) -> int:
        """The primary key of the delivery."""
        return self.claimed.delivery_id

    @property
    def message_id(self) -> str:
        """The id of the message, the same at every redelivery."""
        return message_id_for(self.claimed.event_id, self.claimed.handler)

    @property
    def queue_name(self) -> str:
        """The queue to which it goes."""
        return self.template.queue_name

    @property
    def priority(self) -> int | None:
        """RabbitMQ's priority of this message, if it has one.

        Raises:
            ValueError: if the payload is not an actor's.
        """
        if self.template.kind == "actor":
            return self._actor_call().get("options", {}).get("broker_priority")
        return self.template.priority

    def message(self) -> Message[Any]:
        """Build the message by decoding the row.

        Raises:
            ValueError: if the payload or the headers are not what they have to be.
        """
        return Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            **(self._call_fields() if self.template.kind == "actor" else self._event_fields()),
            message_id=self.message_id,
            message_timestamp=self.template.timestamp_ms,
        )

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, `extra_options` added to its options.

        Raises:
            ValueError: if the payload or the headers are not what they have to be.
        """
        template = self.template
        if template.is_spliced:
            if template.kind == "event":
                return template.of_event(self.claimed, self.message_id, extra_options)
            # Options of the call's own are merged with ours, which is for the general path to do.
            if "options" not in self._actor_call():
                return template.of_call(self.claimed, self.message_id, extra_options)
        return self.message().copy(options=extra_options).encode()

    def _event_fields(self) -> dict[str, Any]:
        event = envelope(self.claimed)
        options = {} if self.priority is None else {"broker_priority": self.priority}
        return {"args": (event,), "kwargs": {}, "options": {**options, "outbox": self._option()}}

    def _call_fields(self) -> dict[str, Any]:
        claimed = self.claimed
        call = self._actor_call()
        event = {
            "id": claimed.event_id,
            "topic": claimed.topic,
            "key": claimed.key,
            "headers": json.loads(claimed.headers),
            "created_at": claimed.created_at,
        }
        outbox = {**self._option(), "event": event}
        return {
            "args": tuple(call["args"]),
            "kwargs": call["kwargs"],
            "options": {**call.get("options", {}), "outbox": outbox},
        }

    def _option(self) -> dict[str, Any]:
        claimed = self.claimed
        option = {
            "v": claimed.message_version,
            "delivery": claimed.delivery_id,
            "database": self.template.database,
        }
        if claimed.redeliveries > 0:
            option["redelivered"] = claimed.redeliveries
        return option

    def _actor_call(self) -> Call:
        if self._call is None:
            self._call = _parse_call(self.claimed.payload)
        return self._call


def envelope(claimed: Claimed) -> dict[str, Any]:
    """Return an event as it travels.

    Raises:
        ValueError: if its payload or headers are not JSON.
    """
    return {
        "id": claimed.event_id,
        "topic": claimed.topic,
        "key": claimed.key,
        "payload": json.loads(claimed.payload),
        "headers": json.loads(claimed.headers),
        "created_at": claimed.created_at,
    }


def _parse_call(payload: str) -> Call:
    call = json.loads(payload)
    if not isinstance(call, dict) or not {"args", "kwargs"} <= call.keys() <= CALL_PARTS.keys():
        raise ValueError("payload: a message of an actor is an object of args, kwargs and, if any, options")
    for name, part in call.items():
        if not isinstance(part, CALL_PARTS[name]):
            raise ValueError(f"payload[{name!r}]: {CALL_PARTS[name].__name__} expected, got {part!r:.80}")
    return cast(Call, call)
