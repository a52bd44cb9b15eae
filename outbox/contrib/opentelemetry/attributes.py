"""Attributes by the semantic conventions of OpenTelemetry for messaging, and some of the outbox.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from opentelemetry.util.types import AttributeValue

SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
CONSUMER_GROUP = "messaging.consumer.group.name"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
BATCH_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"

DATABASE = "outbox.database"
DELIVERY_ID = "outbox.delivery.id"
HANDLERS = "outbox.handlers"
RESULT = "outbox.result"
RETRIES = "outbox.retries"
RETRY_DELAY = "outbox.retry.delay"

Attributes = dict[str, AttributeValue]
Operation = Literal["publish", "dispatch", "process"]

# The relay sends to a broker, as the publisher sends to the relay.
_TYPES = {"publish": "send", "dispatch": "send", "process": "process"}


def operation(name: Operation, topics: Collection[str] = ()) -> Attributes:
    """Return the attributes that spans and metrics of an operation share.

    Args:
        topics: the topics of its events; several have no common destination.
    """
    attributes: Attributes = {SYSTEM: "outbox", OPERATION_NAME: name, OPERATION_TYPE: _TYPES[name]}
    distinct = set(topics)
    if len(distinct) == 1:
        attributes[DESTINATION] = distinct.pop()
    return attributes


def span_name(attributes: Attributes) -> str:
    """Return the name of a span: its operation, and its destination if there is one."""
    return " ".join(str(attributes[name]) for name in (OPERATION_NAME, DESTINATION) if name in attributes)


def error_type(error: BaseException) -> str:
    """Return the class of an error, with its module unless that is `builtins`."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
