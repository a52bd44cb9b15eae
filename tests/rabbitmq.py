"""Brokers on a RabbitMQ server that leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker

MakeBroker = Callable[..., RabbitmqBroker]


@contextmanager
def rabbitmq_brokers(default_url: str) -> Iterator[MakeBroker]:
    """Make brokers, and in the end close them and delete their queues."""
    brokers: list[RabbitmqBroker] = []

    def make(**options: Any) -> RabbitmqBroker:
        brokers.append(RabbitmqBroker(**({"url": default_url, "middleware": []} | options)))
        return brokers[-1]

    yield make
    with pika.BlockingConnection(pika.URLParameters(default_url)) as connection:
        channel = connection.channel()
        for broker in brokers:
            broker.close()
            for name in broker.get_declared_queues():
                for queue in (name, f"{name}.DQ", f"{name}.XQ"):
                    channel.queue_delete(queue)


def taken(channel: Any, queue_name: str) -> list[tuple[pika.BasicProperties, bytes]]:
    """Take all messages off a queue."""
    messages = []
    while (answer := channel.basic_get(queue_name, auto_ack=True))[0] is not None:
        messages.append(answer[1:])
    return messages
