"""Publishers: each sends a whole batch to a broker in as few round trips as the broker allows."""

from __future__ import annotations

from typing import Any, cast

from dramatiq import Broker

from .base import Marker, PartlySent, Publisher, Refusal
from .generic import GenericPublisher

__all__ = ["Marker", "PartlySent", "Publisher", "Refusal", "publisher_for"]


def publisher_for(broker: Broker) -> Publisher:
    """Return the fastest publisher that has the same effect as `broker.enqueue`."""
    # Compared by name: the client libraries of the other brokers need not be installed.
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(broker).__mro__}
    if "dramatiq.brokers.redis.RedisBroker" in classes:
        from . import generic_redis, redis, redis_support

        if redis_support.supports(broker):
            return redis.RedisPublisher(broker)
        return generic_redis.GenericRedisPublisher(broker)
    if "dramatiq.brokers.rabbitmq.RabbitmqBroker" in classes:
        from . import rabbitmq, rabbitmq_broker

        if rabbitmq_broker.supports(broker):
            return rabbitmq.RabbitmqPublisher(broker)
    if "outbox.brokers.embedded.EmbeddedBroker" in classes:
        from . import embedded

        return embedded.EmbeddedPublisher(cast(Any, broker))
    return GenericPublisher(broker)
