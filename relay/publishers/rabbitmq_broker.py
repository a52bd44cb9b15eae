"""The parts of the publisher to RabbitMQ that read or use Dramatiq's broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import pika
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed
from pika.exceptions import AMQPChannelError

from .base import MAX_NAME_LENGTH, describe


def supports(broker: Broker) -> TypeGuard[RabbitmqBroker]:
    """Return whether the broker enqueues as the publisher does."""
    return (
        isinstance(broker, RabbitmqBroker)
        and type(broker).enqueue is RabbitmqBroker.enqueue
        and "enqueue" not in vars(broker)
    )


def address(broker: RabbitmqBroker) -> str:
    """Return the address of a broker's servers and its virtual host."""
    parameters: Any = broker.parameters
    hosts = [parameters] if isinstance(parameters, pika.connection.Parameters) else list(parameters)
    servers = ",".join(f"{one.host}:{one.port}/{one.virtual_host}" for one in hosts)
    return f"rabbitmq {servers}"[:MAX_NAME_LENGTH]


def declare(broker: RabbitmqBroker, queues: Iterable[str]) -> dict[str, str]:
    """Declare queues through the broker; return the error of each queue that cannot be declared."""
    errors = {}
    try:
        for queue in queues:
            try:
                broker.declare_queue(queue, ensure=True)
            except ConnectionClosed as error:
                # A channel error concerns one queue, for example one that exists with other arguments.
                if not isinstance(error.message, AMQPChannelError):
                    raise
                errors[queue] = describe(error.message)
    finally:
        # The broker has a connection for each thread, and this thread ends here.
        del broker.connection
    return errors
