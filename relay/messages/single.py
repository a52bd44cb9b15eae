"""The Dramatiq message of one claimed delivery."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict, cast

from dramatiq import Message

from relay.claimed_delivery import ClaimedDelivery

from .message_ids import message_id_for
from .template import Template

# Types of the parts of an actor's call. All but "options" are required.
CALL_PARTS = {"args": list, "kwargs": dict, "options": dict}


class Call(TypedDict, total=False):
    """The payload of an event that is an actor's message."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


class OutgoingMessage:
    """A message to the broker, encoded late and without decoding where the encoder allows it.

    Attributes:
        claimed: its delivery; the first one of several.
        rows: all its deliveries.
    """

    __slots__ = ("_call", "claimed", "rows", "template")

    def __init__(self, claimed: ClaimedDelivery, template: Template) -> None:
        self.claimed = claimed
        self.rows: Sequence[ClaimedDelivery] = (claimed,)
        self.template = template
        self._call: Call | None = None

    def __repr__(self) -> str:
        return f"<OutgoingMessage of delivery {self.delivery_id} to {self.claimed.handler}>"

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
        """The queue of the message."""
        return self.template.queue_name

    @property
    def priority(self) -> int | None:
        """The RabbitMQ priority of the message, if it has one.

        Raises:
            ValueError: if the payload is not the call of an actor.
        """
        stored = self._stored_options()
        if "broker_priority" in stored:
            priority: int = stored["broker_priority"]
            return priority
        if self.template.kind == "actor":
            return self._actor_call().get("options", {}).get("broker_priority")
        return self.template.priority

    def message(self) -> Message[Any]:
        """Build the message by decoding the row.

        Raises:
            ValueError: if the payload or the headers are malformed.
        """
        stored = self._stored_options()
        timestamp_ms = stored.pop("message_timestamp", self.template.timestamp_ms)
        message: Message[Any] = Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            **(self._call_fields() if self.template.kind == "actor" else self._event_fields()),
            message_id=self.message_id,
            message_timestamp=timestamp_ms,
        )
        return message.copy(options=stored) if stored else message

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, with `extra_options` added to its options.

        Raises:
            ValueError: if the payload or the headers are malformed.
        """
        template = self.template
        if template.builds_text and not self.claimed.message_options:
            if template.kind == "event":
                return template.event_body(self.claimed, self.message_id, extra_options)
            # The options of a call have to be merged, which needs decoding.
            if "options" not in self._actor_call():
                return template.call_body(self.claimed, self.message_id, extra_options)
        return self.message().copy(options=extra_options).encode()

    def _stored_options(self) -> dict[str, Any]:
        """Return the options that a retry has stored, with the time of the first dispatch among them."""
        return json.loads(self.claimed.message_options) if self.claimed.message_options else {}

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
            **_marks(claimed),
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
        if claimed.earlier_messages > 0:
            option["earlier_messages"] = claimed.earlier_messages
        return option

    def _actor_call(self) -> Call:
        if self._call is None:
            self._call = _parse_call(self.claimed.payload)
        return self._call


def envelope(claimed: ClaimedDelivery) -> dict[str, Any]:
    """Return the event of a delivery as an argument of its message.

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
        **_marks(claimed),
    }


def _marks(claimed: ClaimedDelivery) -> dict[str, bool]:
    return {"replayed": True} if claimed.replayed else {}


def _parse_call(payload: str) -> Call:
    call = json.loads(payload)
    if not isinstance(call, dict) or not {"args", "kwargs"} <= call.keys() <= CALL_PARTS.keys():
        raise ValueError("payload: a message of an actor is an object of args, kwargs and, if any, options")
    for name, part in call.items():
        if not isinstance(part, CALL_PARTS[name]):
            raise ValueError(f"payload[{name!r}]: {CALL_PARTS[name].__name__} expected, got {part!r:.80}")
    return cast(Call, call)
