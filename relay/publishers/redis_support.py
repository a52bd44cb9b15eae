"""Which Redis brokers store their messages in the way that the relay knows."""

from __future__ import annotations

import copy
import hashlib
import logging
from typing import Any, TypeGuard

from dramatiq import Broker, Message
from dramatiq.brokers.redis import RedisBroker
from redis.connection import ConnectionPool

logger = logging.getLogger(__name__)

# SHA-256 of dispatch.lua without comments and blank lines, in Dramatiq 2.0.0 to 2.2.1.
KNOWN_SCRIPTS = {"068681b6124870190eb1b15655e25b32b5ad8de21827a2cd3712445b03377b19"}


def supports(broker: Broker) -> TypeGuard[RedisBroker]:
    """Return whether the broker stores its messages as the relay does; if not, log the reason."""
    if not isinstance(broker, RedisBroker) or _is_customized(broker):
        return False
    reason = None
    if not isinstance(getattr(broker.client, "connection_pool", None), ConnectionPool):
        reason = f"{type(broker.client).__name__} has no connection pool"
    elif _digest(broker.scripts["dispatch"].script) not in KNOWN_SCRIPTS or not _enqueues_as_known(broker):
        reason = "the relay does not support the way in which this version of Dramatiq stores messages"
    if reason:
        logger.warning("messages go to Redis one at a time, which is slow: %s", reason)
    return reason is None


def _is_customized(broker: RedisBroker) -> bool:
    names = ("enqueue", "do_enqueue", "_dispatch", "__getattr__")
    return any(name in vars(broker) for name in names) or any(
        getattr(type(broker), name, None) is not getattr(RedisBroker, name, None) for name in names
    )


def _digest(script: Any) -> str:
    source = script.decode() if isinstance(script, bytes) else str(script)
    lines = (line.partition("--")[0].rstrip() for line in source.splitlines())
    return hashlib.sha256("".join(f"{line}\n" for line in lines if line).encode()).hexdigest()


def _enqueues_as_known(broker: RedisBroker) -> bool:
    """Let a clone of the broker enqueue a message without Redis, and check the result."""
    sent: list[tuple[Any, ...]] = []
    clone = copy.copy(broker)
    clone.middleware = []
    vars(clone)["do_enqueue"] = lambda *args: sent.append(args)
    message = Message[Any]("queue", "actor", (), {}, {"outbox": {}})
    clone.enqueue(message)
    match sent:
        case [(str() as queue, str() as redis_id, bytes() as body)]:
            return queue == "queue" and body == message.copy(options={"redis_message_id": redis_id}).encode()
    return False
