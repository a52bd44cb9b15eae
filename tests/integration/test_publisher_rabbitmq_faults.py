"""Publish to a RabbitMQ server that is down, silent, or blocks publishers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from outbox.errors import BrokerUnavailable
from relay.publishers import publisher_for
from tests.support.brokers import RabbitmqBrokers, can_probe, publishing
from tests.support.outgoing import make_actor, make_batch, make_outgoing
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

pytestmark = pytest.mark.rabbitmq


def test_a_refused_login_is_reported_without_the_password(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = urlsplit(rabbitmq_url)
    wrong = url._replace(netloc=f"guest:hush@{url.netloc.rpartition('@')[2]}").geturl()
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED") as caught:
        publisher_for(RabbitmqBroker(url=wrong, middleware=[])).probe()
    assert "hush" not in str(caught.value)
    assert "hush" not in caplog.text


def test_the_publisher_tries_the_next_host(
    rabbitmq_brokers: RabbitmqBrokers, rabbitmq_url: str, closed_port: int, silent_port: int
) -> None:
    dead = [f"amqp://guest:guest@127.0.0.1:{port}" for port in (closed_port, silent_port)]
    broker = rabbitmq_brokers.make(url=[*dead, rabbitmq_url])
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        publisher.probe()
        broker.declare_queue(actor.queue_name)
        broker.parameters = broker.parameters[-1:]  # the broker itself takes too long to skip dead hosts
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []


@pytest.fixture
def proxied(rabbitmq_brokers: RabbitmqBrokers) -> Iterator[tuple[RabbitmqBroker, Proxy]]:
    """Make a broker behind a proxy."""
    with rabbitmq_brokers.proxied() as found:
        yield found


def test_a_declaration_without_an_answer_ends_in_time(proxied: tuple[RabbitmqBroker, Proxy]) -> None:
    broker, proxy = proxied
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        publisher.probe()
        proxy.freeze()
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            publisher.publish([make_outgoing(actor)], timeout_s=0.5)
        assert time.monotonic() - started < 0.5 + 0.5


def test_a_probe_notices_a_closed_connection_without_a_ping(
    proxied: tuple[RabbitmqBroker, Proxy],
) -> None:
    broker, proxy = proxied
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
        before = proxy.accepted
        proxy.cut()
        wait_until(lambda: can_probe(publisher) and proxy.accepted == before + 1)
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []


def test_a_connection_lost_in_the_middle_of_a_batch_fails_the_whole_batch(
    proxied: tuple[RabbitmqBroker, Proxy],
) -> None:
    broker, proxy = proxied
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        publisher.publish([make_outgoing(actor)], timeout_s=5)
        channel = publisher._connection._channel  # type: ignore[attr-defined]
        send = channel.basic_publish
        channel.basic_publish = lambda *args, **kwargs: (send(*args, **kwargs), proxy.cut())
        with pytest.raises(BrokerUnavailable):
            publisher.publish(make_batch(actor, 3), timeout_s=5)
        assert publisher.publish(make_batch(actor, 3), timeout_s=5) == []


def test_a_probe_fails_while_rabbitmq_blocks_publishers(proxied: tuple[RabbitmqBroker, Proxy]) -> None:
    broker, proxy = proxied
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        publisher.publish([make_outgoing(actor)], timeout_s=5)
        accepted = proxy.accepted
        proxy.inject(pika.frame.Method(0, pika.spec.Connection.Blocked("low on memory")).marshal())
        wait_until(lambda: not can_probe(publisher))
        with pytest.raises(BrokerUnavailable, match="low on memory"):
            publisher.publish([make_outgoing(actor)], timeout_s=5)
        proxy.inject(pika.frame.Method(0, pika.spec.Connection.Unblocked()).marshal())
        wait_until(lambda: can_probe(publisher))
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
        # RabbitMQ would not have announced the block to a new connection.
        assert proxy.accepted == accepted


def test_publishing_leaves_the_parameters_of_the_broker_unchanged(rabbitmq_url: str) -> None:
    broker = RabbitmqBroker(url=f"{rabbitmq_url.partition('?')[0]}?heartbeat=30", middleware=[])
    with publishing(broker) as publisher:
        publisher.probe()
    assert broker.parameters.heartbeat == 30
