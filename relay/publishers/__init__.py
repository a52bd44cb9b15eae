"""Ways to hand a whole batch to a broker in as few round trips as it allows."""

from __future__ import annotations

from dramatiq import Broker

from relay.publishers.base import PartlySent, Publisher, Refusal
from relay.publishers.generic import GenericPublisher

__all__ = ["PartlySent", "Publisher", "Refusal", "publisher_for"]


def publisher_for(broker: Broker) -> Publisher:
    """Return the fastest publisher that does what `broker.enqueue` would."""
    # By name, since the client libraries of the other brokers need not be installed.
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(broker).__mro__}
    if "dramatiq.brokers.redis.RedisBroker" in classes:
        from relay.publishers import redis

        if redis.knows(broker):
            return redis.RedisPublisher(broker)
    if "dramatiq.brokers.rabbitmq.RabbitmqBroker" in classes:
        from relay.publishers import rabbitmq

        if rabbitmq.knows(broker):
            return rabbitmq.RabbitmqPublisher(broker)
    return GenericPublisher(broker)
