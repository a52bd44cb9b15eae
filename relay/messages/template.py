"""Message bodies built as text: JSON from the database is copied into a body without decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from dramatiq import Actor, Message, get_encoder
from dramatiq.common import current_millis
from dramatiq.encoder import JSONEncoder

from relay.claimed_delivery import ClaimedDelivery

Kind = Literal["event", "actor"]

_quote: Callable[[str], str] = encode_basestring_ascii
# The events of a batch have few topics.
_quoted = lru_cache(maxsize=1024)(_quote)
encode_value = json.JSONEncoder(separators=(",", ":")).encode
# The member of an event that only a replay writes.
REPLAYED = ',"replayed":true'
_original_message_encode = Message.encode
_original_json_encode = JSONEncoder.encode


def dramatiq_writes_json() -> bool:
    """Return whether Dramatiq encodes messages as plain JSON, with neither encoder nor `Message` replaced."""
    return (
        type(get_encoder()) is JSONEncoder
        and JSONEncoder.encode is _original_json_encode
        and Message.encode is _original_message_encode
    )


def envelope_text(claimed: ClaimedDelivery) -> str:
    """Return the JSON of `envelope`, with payload and headers as the database returned them."""
    return (
        f'{{"id":"{claimed.event_id}","topic":{_quoted(claimed.topic)},"key":{_quote(claimed.key)},'
        f'"payload":{claimed.payload},"headers":{claimed.headers},'
        f'"created_at":{_quote(claimed.created_at)}{REPLAYED if claimed.replayed else ""}}}'
    )


class Template:
    """The common parts of the messages of one claim to one handler, as values and as JSON.

    Args:
        handler: the name of the handler and its actor.
        kind: whether a payload is an event's or the call of an actor.
        database: the alias of the database of the deliveries.

    Attributes:
        builds_text: whether a body can be built as text; otherwise Dramatiq has to encode the message.
    """

    __slots__ = (
        *("actor", "builds_text", "database", "handler", "kind", "priority", "queue_name", "timestamp_ms"),
        *("_begin", "_database", "_end", "_priority"),
    )

    def __init__(self, handler: str, *, actor: Actor[..., Any], kind: Kind, database: str) -> None:
        self.handler = handler
        self.actor = actor
        self.kind = kind
        self.database = database
        # The present queue of the actor; an older row may have another one.
        self.queue_name = actor.queue_name
        # The priority of an actor's own message is in the options of its call.
        self.priority = actor.options.get("broker_priority") if kind == "event" else None
        self.timestamp_ms = current_millis()
        # Dramatiq's encoder refuses a priority that it cannot encode.
        self.builds_text = dramatiq_writes_json() and (self.priority is None or type(self.priority) is int)
        self._begin = f'{{"queue_name":{_quote(self.queue_name)},"actor_name":{_quote(handler)},'
        self._database = _quote(database)
        self._priority = "" if self.priority is None else f'"broker_priority":{self.priority},'
        self._end = f'","message_timestamp":{self.timestamp_ms}}}'

    def event_body(
        self, claimed: ClaimedDelivery, message_id: str, extra_options: Mapping[str, Any]
    ) -> bytes:
        """Return the encoded message of an event."""
        # The same as `body`, but in one expression, since nearly all messages are built here.
        return (
            f'{self._begin}"args":[{envelope_text(claimed)}],"kwargs":{{}},'
            f'"options":{{{self._priority}"outbox":{{{self._option(claimed)}}}{_members(extra_options)}}},'
            f'"message_id":"{message_id}{self._end}'
        ).encode()

    def call_body(self, claimed: ClaimedDelivery, message_id: str, extra_options: Mapping[str, Any]) -> bytes:
        """Return the encoded message of a call without options."""
        return self.body(
            # The payload was checked to be an object of args and kwargs, so its members become members here.
            claimed.payload.strip()[1:-1],
            f'"outbox":{{{self._option(claimed)},"event":{_event_of_call(claimed)}}}',
            message_id,
            extra_options,
        )

    def body(self, call: str, options: str, message_id: str, extra_options: Mapping[str, Any]) -> bytes:
        """Return an encoded message.

        Args:
            call: the members "args" and "kwargs".
            options: the members of "options".
        """
        return (
            f'{self._begin}{call},"options":{{{options}{_members(extra_options)}}},'
            f'"message_id":"{message_id}{self._end}'
        ).encode()

    def _option(self, claimed: ClaimedDelivery) -> str:
        # `claimed.earlier_messages` inlined, since it is computed for every message.
        earlier = claimed.redeliveries + claimed.resends
        earlier_messages = f',"earlier_messages":{earlier}' if earlier > 0 else ""
        return (
            f'"v":{claimed.message_version},"delivery":{claimed.delivery_id},'
            f'"database":{self._database}{earlier_messages}'
        )


def _members(options: Mapping[str, Any]) -> str:
    members = ""
    for name, value in options.items():
        # Nearly always an id, for which the general encoder takes several times as long.
        members += f",{_quoted(name)}:{_quote(value) if type(value) is str else encode_value(value)}"
    return members


def _event_of_call(claimed: ClaimedDelivery) -> str:
    # Without a payload, since the payload is the call.
    return (
        f'{{"id":"{claimed.event_id}","topic":{_quoted(claimed.topic)},"key":{_quote(claimed.key)},'
        f'"headers":{claimed.headers},"created_at":{_quote(claimed.created_at)}'
        f"{REPLAYED if claimed.replayed else ''}}}"
    )
