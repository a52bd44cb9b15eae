"""The maintenance of Dramatiq's queues in Redis, which each process does now and then."""

from __future__ import annotations

import random

from dramatiq.brokers.redis import MAINTENANCE_SCALE, RedisBroker

from outbox.brokers.redis_connection import Command

# Values that the script unpacks at once at most. RedisBroker asks the server for its limit; a smaller number
# only takes more steps.
MAX_UNPACK_SIZE = 500


def is_maintenance_due(broker: RedisBroker, count: int) -> bool:
    """Draw once, with the chance that RedisBroker would have for so many messages."""
    chance: float = 1 - (1 - broker.maintenance_chance / MAINTENANCE_SCALE) ** count
    return random.random() < chance  # noqa: S311 - decides on maintenance only


def maintenance(broker: RedisBroker, queue: str, now: int) -> Command:
    """Return a call of dispatch.lua with no effect but its maintenance.

    Args:
        now: the time in milliseconds since 1970.
    """
    # The source and not its digest: a server without the script would fail within the transaction.
    return (
        *("EVAL", broker.scripts["dispatch"].script, 1, broker.namespace),
        *("qsize", now, queue, broker.broker_id),
        *(broker.heartbeat_timeout, broker.dead_message_ttl, 1, MAX_UNPACK_SIZE),
    )
