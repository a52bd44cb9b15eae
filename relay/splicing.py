"""Messages put together from strings: JSON from the database goes into them as it is, undecoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from dramatiq import Actor, Message, get_encoder
from dramatiq.common import current_millis
from dramatiq.encoder import JSONEncoder

from .claimed import Claimed

Kind = Literal["event", "actor"]

_quote: Callable[[str], str] = encode_basestring_ascii
# A batch has few topics.
_quoted = lru_cache(maxsize=1024)(_quote)
encode_value = json.JSONEncoder(separators=(",", ":")).encode
_plain_message_encode = Message.encode
_plain_json_encode = JSONEncoder.encode


def splices() -> bool:
    """Say whether Dramatiq would encode a message as plain JSON."""
    return (
        type(get_encoder()) is JSONEncoder
        and JSONEncoder.encode is _plain_json_encode
        and Message.encode is _plain_message_encode
    )


def spliced_envelope(claimed: Claimed) -> str:
    """Return the JSON of `envelope`, with what the database gave as it is."""
    return (
        f'{{"id":"{claimed.event_id}","topic":{_quoted(claimed.topic)},"key":{_quote(claimed.key)},'
        f'"payload":{claimed.payload},"headers":{claimed.headers},'
        f'"created_at":{_quote(claimed.created_at)}}}'
    )


class Template:
    """What the messages of one batch to one handler have in common, as it is and as JSON.

    Args:
        handler: the name of the handler, which is that of its actor.
        kind: what its payloads are.
        database: the alias of the database that has the deliveries.
    """

    __slots__ = (
        *("actor", "database", "handler", "is_spliced", "kind", "priority", "queue_name", "timestamp_ms"),
        *("_begin", "_database", "_end", "_priority"),
    )

    def __init__(self, handler: str, *, actor: Actor[..., Any], kind: Kind, database: str) -> None:
        self.handler = handler
        self.actor = actor
        self.kind = kind
        self.database = database
        # The one on which the actor listens now, which an older row may not know.
        self.queue_name = actor.queue_name
        # An actor's own messages have theirs in their options.
        self.priority = actor.options.get("broker_priority") if kind == "event" else None
        self.timestamp_ms = current_millis()
        # Any other priority is for the general path, which refuses what cannot be one.
        self.is_spliced = splices() and (self.priority is None or type(self.priority) is int)
        self._begin = f'{{"queue_name":{_quote(self.queue_name)},"actor_name":{_quote(handler)},'
        self._database = _quote(database)
        self._priority = "" if self.priority is None else f'"broker_priority":{self.priority},'
        self._end = f'","message_timestamp":{self.timestamp_ms}}}'

    def of_event(self, claimed: Claimed, message_id: str, extra_options: Mapping[str, Any]) -> bytes:
        """Return the message of an event."""
        # What `of` returns, in one go: nearly all messages are made here.
        return (
            f'{self._begin}"args":[{spliced_envelope(claimed)}],"kwargs":{{}},'
            f'"options":{{{self._priority}"outbox":{{{self._option(claimed)}}}{_further(extra_options)}}},'
            f'"message_id":"{message_id}{self._end}'
        ).encode()

    def of_call(self, claimed: Claimed, message_id: str, extra_options: Mapping[str, Any]) -> bytes:
        """Return the message of a call that has no options."""
        return self.of(
            # Known by now to be an object of args and kwargs, so what its braces hold is a part of ours.
            claimed.payload.strip()[1:-1],
            f'"outbox":{{{self._option(claimed)},"event":{_event_of_call(claimed)}}}',
            message_id,
            extra_options,
        )

    def of(self, call: str, options: str, message_id: str, extra_options: Mapping[str, Any]) -> bytes:
        """Return a message.

        Args:
            call: the members "args" and "kwargs".
            options: the members of "options".
        """
        return (
            f'{self._begin}{call},"options":{{{options}{_further(extra_options)}}},'
            f'"message_id":"{message_id}{self._end}'
        ).encode()

    def _option(self, claimed: Claimed) -> str:
        redelivered = f',"redelivered":{claimed.redeliveries}' if claimed.redeliveries > 0 else ""
        return (
            f'"v":{claimed.message_version},"delivery":{claimed.delivery_id},'
            f'"database":{self._database}{redelivered}'
        )


def _further(options: Mapping[str, Any]) -> str:
    members = ""
    for name, value in options.items():
        # Nearly always an id, for which the general encoder takes several times as long.
        members += f",{_quoted(name)}:{_quote(value) if type(value) is str else encode_value(value)}"
    return members


def _event_of_call(claimed: Claimed) -> str:
    # Without a payload, as that is the call.
    return (
        f'{{"id":"{claimed.event_id}","topic":{_quoted(claimed.topic)},"key":{_quote(claimed.key)},'
        f'"headers":{claimed.headers},"created_at":{_quote(claimed.created_at)}}}'
    )
