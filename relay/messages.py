"""What becomes of a claimed delivery: a Dramatiq message."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, NamedTuple, TypedDict, cast
from uuid import UUID

from dramatiq import Actor, Message, get_encoder
from dramatiq.common import current_millis
from dramatiq.encoder import JSONEncoder

from outbox.versions import UNWRITTEN, WRITTEN

Kind = Literal["event", "actor"]

# Types of the parts of an actor's payload. All but "options" are required.
CALL_PARTS = {"args": list, "kwargs": dict, "options": dict}

_quote: Callable[[str], str] = encode_basestring_ascii
# A batch has few topics, handlers and queues.
_quoted = lru_cache(maxsize=1024)(_quote)
encode_value = json.JSONEncoder(separators=(",", ":")).encode
_plain_message_encode = Message.encode
_plain_json_encode = JSONEncoder.encode


class Claimed(NamedTuple):
    """One row of the claim statement."""

    delivery_id: int
    event_id: UUID
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


class Call(TypedDict, total=False):
    """The payload of an event that is an actor's message."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


def message_id_for(event_id: UUID, handler: str) -> str:
    """Return `str(uuid5(event_id, handler))`, without the objects in between."""
    digest = sha1(event_id.bytes + handler.encode(), usedforsecurity=False).digest()
    return uuid_text(digest[:16], version=5)


def uuid_text(octets: bytes, *, version: int) -> str:
    """Return 16 bytes as the text of a UUID, its version and variant set as RFC 9562 has them."""
    text = octets.hex()
    variant = "89ab"[octets[8] >> 4 & 3]
    return f"{text[:8]}-{text[8:12]}-{version}{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


class Outgoing:
    """A claimed delivery on its way to the broker, encoded as late and as little as the encoder allows."""

    __slots__ = ("_call", "_timestamp_ms", "actor", "claimed", "database", "kind")

    def __init__(self, claimed: Claimed, actor: Actor[..., Any], kind: Kind, database: str) -> None:
        self.claimed = claimed
        self.actor = actor
        self.kind = kind
        self.database = database
        self._timestamp_ms = current_millis()
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
        """The queue that the actor listens on now, which an older row may not know."""
        return self.actor.queue_name

    @property
    def priority(self) -> int | None:
        """RabbitMQ's priority of this message, if it has one.

        Raises:
            ValueError: if the payload is not an actor's.
        """
        if self.kind == "actor":
            return self._actor_call().get("options", {}).get("broker_priority")
        return self.actor.options.get("broker_priority")

    def message(self) -> Message[Any]:
        """Build the message by decoding the row.

        Raises:
            ValueError: if the payload or the headers are not what they have to be.
        """
        return Message(
            queue_name=self.queue_name,
            actor_name=self.claimed.handler,
            **(self._call_fields() if self.kind == "actor" else self._event_fields()),
            message_id=self.message_id,
            message_timestamp=self._timestamp_ms,
        )

    def body(self, **extra_options: Any) -> bytes:
        """Return the encoded message, `extra_options` added to its options.

        Raises:
            ValueError: if the payload or the headers are not what they have to be.
        """
        if splices():
            if self.kind == "event":
                return self._spliced_event(extra_options)
            # Options of the call's own are merged with ours, which is for the general path to do.
            if "options" not in self._actor_call():
                return self._spliced_call(extra_options)
        return self.message().copy(options=extra_options).encode()

    # The general path: decode, then leave the encoding to Dramatiq.

    def _event_fields(self) -> dict[str, Any]:
        event = envelope(self.claimed)
        options = {} if self.priority is None else {"broker_priority": self.priority}
        return {"args": (event,), "kwargs": {}, "options": {**options, "outbox": self._option()}}

    def _call_fields(self) -> dict[str, Any]:
        claimed = self.claimed
        call = self._actor_call()
        event = {
            "id": str(claimed.event_id),
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
        option = {"v": claimed.message_version, "delivery": claimed.delivery_id, "database": self.database}
        if claimed.redeliveries > 0:
            option["redelivered"] = claimed.redeliveries
        return option

    def _actor_call(self) -> Call:
        if self._call is None:
            self._call = _parse_call(self.claimed.payload)
        return self._call

    # The fast path: JSON from the database goes into the message as it is, undecoded.

    def _spliced_event(self, extra_options: dict[str, Any]) -> bytes:
        options = f'"outbox":{{{self._spliced_option()}}}'
        if (priority := self.priority) is not None:
            options = f'"broker_priority":{encode_value(priority)},{options}'
        args = f'"args":[{spliced_envelope(self.claimed)}],"kwargs":{{}}'
        return self._spliced(args, options, extra_options)

    def _spliced_call(self, extra_options: dict[str, Any]) -> bytes:
        claimed = self.claimed
        event = (
            f'{{"id":"{claimed.event_id}","topic":{_quote(claimed.topic)},"key":{_quote(claimed.key)},'
            f'"headers":{claimed.headers},"created_at":{_quote(claimed.created_at)}}}'
        )
        return self._spliced(
            # Known by now to be an object of args and kwargs, so what its braces hold is a part of ours.
            claimed.payload.strip()[1:-1],
            f'"outbox":{{{self._spliced_option()},"event":{event}}}',
            extra_options,
        )

    def _spliced_option(self) -> str:
        claimed = self.claimed
        redelivered = f',"redelivered":{claimed.redeliveries}' if claimed.redeliveries > 0 else ""
        return (
            f'"v":{claimed.message_version},"delivery":{claimed.delivery_id},'
            f'"database":{_quoted(self.database)}{redelivered}'
        )

    def _spliced(self, call: str, options: str, extra_options: dict[str, Any]) -> bytes:
        for name, value in extra_options.items():
            # Nearly always an id, for which the general encoder takes several times as long.
            encoded = _quote(value) if type(value) is str else encode_value(value)
            options += f",{_quoted(name)}:{encoded}"
        return (
            f'{{"queue_name":{_quoted(self.actor.queue_name)},"actor_name":{_quoted(self.claimed.handler)},'
            f'{call},"options":{{{options}}},"message_id":"{self.message_id}",'
            f'"message_timestamp":{self._timestamp_ms}}}'
        ).encode()


def envelope(claimed: Claimed) -> dict[str, Any]:
    """Return an event as it travels.

    Raises:
        ValueError: if its payload or headers are not JSON.
    """
    return {
        "id": str(claimed.event_id),
        "topic": claimed.topic,
        "key": claimed.key,
        "payload": json.loads(claimed.payload),
        "headers": json.loads(claimed.headers),
        "created_at": claimed.created_at,
    }


def spliced_envelope(claimed: Claimed) -> str:
    """Return the JSON of `envelope`, with what the database gave as it is."""
    return (
        f'{{"id":"{claimed.event_id}","topic":{_quoted(claimed.topic)},"key":{_quote(claimed.key)},'
        f'"payload":{claimed.payload},"headers":{claimed.headers},'
        f'"created_at":{_quote(claimed.created_at)}}}'
    )


def splices() -> bool:
    """Say whether Dramatiq would encode a message as plain JSON."""
    return (
        type(get_encoder()) is JSONEncoder
        and JSONEncoder.encode is _plain_json_encode
        and Message.encode is _plain_message_encode
    )


def _parse_call(payload: str) -> Call:
    call = json.loads(payload)
    if not isinstance(call, dict) or not {"args", "kwargs"} <= call.keys() <= CALL_PARTS.keys():
        raise ValueError("payload: a message of an actor is an object of args, kwargs and, if any, options")
    for name, part in call.items():
        if not isinstance(part, CALL_PARTS[name]):
            raise ValueError(f"payload[{name!r}]: {CALL_PARTS[name].__name__} expected, got {part!r:.80}")
    return cast(Call, call)
