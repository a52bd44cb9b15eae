"""Brokers on a Redis and a RabbitMQ server, with their queues and proxies; they leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import pika
import redis
from dramatiq import Broker, Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from outbox.errors import BrokerUnavailable
from relay.publishers import Publisher, publisher_for
from relay.publishers.rabbitmq import RabbitmqPublisher
from relay.publishers.redis import RedisPublisher

from .names import unique_name
from .proxy import Proxy


class OneByOneRedis(RedisBroker):
    """A Redis broker with its own `enqueue`, which the relay therefore calls for each message."""

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        return super().enqueue(message, delay=delay)


class OneByOneRabbitmq(RabbitmqBroker):
    """A RabbitMQ broker with its own `enqueue`, which the relay therefore calls for each message."""

    def __init__(self, **options: Any) -> None:
        # With confirms, so that a message is in its queue when `enqueue` returns.
        super().__init__(**({"confirm_delivery": True} | options))

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        return super().enqueue(message, delay=delay)


class Brokers(Protocol):
    """The brokers of one test on one server.

    Attributes:
        broker_class: the broker of Dramatiq.
        one_by_one_class: a subclass that enqueues in its own way.
        publisher_class: the publisher that sends a whole batch to the broker.
        probe_timeout: the constant in the publisher's module that bounds a first probe.
        no_answer: a pattern for the error of a server that does not answer.
    """

    broker_class: type[Broker]
    one_by_one_class: type[Broker]
    publisher_class: type[Publisher]
    probe_timeout: str
    no_answer: str

    def make(self, cls: Any = None, **options: Any) -> Any:
        """Make a broker with names of its own."""

    def make_elsewhere(self, port: int) -> Any:
        """Make a broker without timeouts for a local port on which there is no broker."""

    def url_with_password(self, port: int) -> str:
        """Return a URL of a local port with the password `hush`, and retries if a URL can ask for them."""

    def take(self, broker: Any, queue_name: str) -> list[Message[Any]]:
        """Take all messages off a queue, in their order."""

    @contextmanager
    def proxied(self) -> Iterator[tuple[Any, Proxy]]:
        """Make a broker behind a proxy."""


class RedisBrokers:
    """`Brokers` on a Redis server, each in its own namespace."""

    broker_class = RedisBroker
    one_by_one_class = OneByOneRedis
    publisher_class = RedisPublisher
    probe_timeout = "DEFAULT_TIMEOUT_S"
    no_answer = "(?i)timeout"

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[RedisBroker] = []

    def make(self, cls: type[RedisBroker] = RedisBroker, **options: Any) -> RedisBroker:
        defaults = {
            "url": self.url,
            "namespace": unique_name(),
            "middleware": [],
            # Maintenance at random moments would make tests depend on chance.
            "maintenance_chance": 0,
        }
        self._made.append(cls(**(defaults | options)))
        return self._made[-1]

    def make_elsewhere(self, port: int) -> RedisBroker:
        return RedisBroker(host="127.0.0.1", port=port, middleware=[], socket_timeout=None)

    def url_with_password(self, port: int) -> str:
        return f"redis://:hush@127.0.0.1:{port}/0"

    def take(self, broker: RedisBroker, queue_name: str) -> list[Message[Any]]:
        queue, bodies = f"{broker.namespace}:{queue_name}", f"{broker.namespace}:{queue_name}.msgs"
        client: Any = broker.client
        found = client.hgetall(bodies)
        messages = [Message.decode(found[one]) for one in client.lrange(queue, 0, -1)]
        client.delete(queue, bodies)
        return messages

    @contextmanager
    def proxied(self) -> Iterator[tuple[RedisBroker, Proxy]]:
        with _proxy(self.url, 6379) as (proxy, through):
            yield self.make(url=through), proxy

    def close(self) -> None:
        # Not through the brokers: the proxy of a broker has stopped.
        with redis.Redis.from_url(self.url) as client:
            for broker in self._made:
                for key in client.scan_iter(f"{broker.namespace}:*"):
                    client.delete(key)
                broker.client.connection_pool.disconnect()


class RabbitmqBrokers:
    """`Brokers` on a RabbitMQ server, and a channel by which a test looks at queues and changes them."""

    broker_class = RabbitmqBroker
    one_by_one_class = OneByOneRabbitmq
    publisher_class = RabbitmqPublisher
    probe_timeout = "PROBE_TIMEOUT_S"
    no_answer = "in time"

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[RabbitmqBroker] = []
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel: Any = self._connection.channel()

    def make(self, cls: type[RabbitmqBroker] = RabbitmqBroker, **options: Any) -> RabbitmqBroker:
        self._made.append(cls(**({"url": self.url, "middleware": []} | options)))
        return self._made[-1]

    def make_elsewhere(self, port: int) -> RabbitmqBroker:
        return RabbitmqBroker(host="127.0.0.1", port=port, middleware=[])

    def url_with_password(self, port: int) -> str:
        return f"amqp://guest:hush@127.0.0.1:{port}/?connection_attempts=5&retry_delay=2"

    def take(self, broker: RabbitmqBroker, queue_name: str) -> list[Message[Any]]:
        return [Message.decode(body) for _properties, body in self.take_raw(queue_name)]

    def take_raw(self, queue_name: str) -> list[tuple[pika.BasicProperties, bytes]]:
        """Take all messages off a queue, each as its properties and its body."""
        messages = []
        while (answer := self.channel.basic_get(queue_name, auto_ack=True))[0] is not None:
            messages.append(answer[1:])
        return messages

    @contextmanager
    def proxied(self) -> Iterator[tuple[RabbitmqBroker, Proxy]]:
        with _proxy(self.url, 5672) as (proxy, through):
            broker = self.make(url=through)
            yield broker, proxy
            proxy.thaw()
            broker.close()

    def close(self) -> None:
        for broker in self._made:
            broker.close()
            for name in broker.get_declared_queues():
                # Dramatiq keeps delayed messages in <name>.DQ and dead ones in <name>.XQ.
                for queue in (name, f"{name}.DQ", f"{name}.XQ", f"{name}.unwritten"):
                    self.channel.queue_delete(queue)
        self._connection.close()


def delivery_ids(messages: Iterable[Message[Any]]) -> list[int]:
    """Return the ids of the deliveries of messages."""
    return [message.options["outbox"]["delivery"] for message in messages]


@contextmanager
def publishing(broker: Any) -> Iterator[Publisher]:
    """Make the publisher for a broker, and close it at the end."""
    publisher = publisher_for(broker)
    yield publisher
    publisher.close()


def can_probe(publisher: Publisher) -> bool:
    """Return whether a probe succeeds."""
    try:
        publisher.probe()
    except BrokerUnavailable:
        return False
    return True


@contextmanager
def _proxy(url: str, default_port: int) -> Iterator[tuple[Proxy, str]]:
    """Start a proxy before a server; yield the proxy and its URL."""
    parts = urlsplit(url)
    login, at, _host = parts.netloc.rpartition("@")
    with Proxy(parts.port or default_port, parts.hostname or "127.0.0.1") as proxy:
        yield proxy, parts._replace(netloc=f"{login}{at}127.0.0.1:{proxy.port}").geturl()
        proxy.thaw()
