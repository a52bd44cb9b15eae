"""Publish to a RabbitMQ that is away, silent, or blocks publishers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from outbox.errors import BrokerUnavailable
from relay.publishers import Publisher, publisher_for, rabbitmq
from tests.outgoing import make_actor, make_batch, make_outgoing
from tests.processes import wait_until
from tests.proxy import Proxy
from tests.rabbitmq import MakeBroker, rabbitmq_brokers, taken

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def make_broker(rabbitmq_url: str) -> Iterator[MakeBroker]:
    with rabbitmq_brokers(rabbitmq_url) as make:
        yield make


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    """A channel by which a test looks at and spoils things."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        yield connection.channel()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen, let clients connect, and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_never_answers_is_given_up_in_time(silent_port: int) -> None:
    broker = RabbitmqBroker(host="127.0.0.1", port=silent_port, middleware=[])
    publisher = publisher_for(broker)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publisher.publish([make_outgoing(make_actor(broker))], timeout_s=0.5)
    assert time.monotonic() - started < 0.5 + 0.3


def test_a_server_that_is_not_there_is_reported_at_once_and_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"amqp://guest:hush@127.0.0.1:{port}/?connection_attempts=5&retry_delay=2"
    publisher = publisher_for(RabbitmqBroker(url=url, middleware=[]))
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="refused") as caught:
        publisher.probe()
    assert time.monotonic() - started < 1
    assert "hush" not in str(caught.value)


def test_a_refused_login_is_reported_without_the_password(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = urlsplit(rabbitmq_url)
    wrong = url._replace(netloc=f"guest:hush@{url.netloc.rpartition('@')[2]}").geturl()
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED") as caught:
        publisher_for(RabbitmqBroker(url=wrong, middleware=[])).probe()
    assert "hush" not in str(caught.value)
    assert "hush" not in caplog.text


def test_the_next_host_is_tried(make_broker: MakeBroker, rabbitmq_url: str, silent_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    dead = [f"amqp://guest:guest@127.0.0.1:{port}" for port in (closed_port, silent_port)]
    broker = make_broker(url=[*dead, rabbitmq_url])
    publisher = publisher_for(broker)
    actor = make_actor(broker)
    publisher.probe()
    broker.declare_queue(actor.queue_name)
    broker.parameters = broker.parameters[-1:]  # the broker's own way past dead hosts takes too long here
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    publisher.close()


@pytest.fixture
def proxied(make_broker: MakeBroker, rabbitmq_url: str) -> Iterator[tuple[RabbitmqBroker, Proxy]]:
    url = urlsplit(rabbitmq_url)
    with Proxy(url.port or 5672, url.hostname or "127.0.0.1") as proxy:
        through = url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}")
        broker = make_broker(url=through.geturl())
        yield broker, proxy
        proxy.thaw()
        broker.close()


def test_a_network_that_falls_silent_is_given_up_in_time(
    proxied: tuple[RabbitmqBroker, Proxy], channel: Any
) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    proxy.freeze()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publisher.publish(make_batch(actor, 200, payload=f'"{"x" * 65536}"'), timeout_s=0.5)
    assert time.monotonic() - started < 0.5 + 0.5
    proxy.thaw()
    publisher.probe()
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    publisher.close()


def test_a_declaration_that_nobody_answers_is_given_up_in_time(
    proxied: tuple[RabbitmqBroker, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.probe()
    proxy.freeze()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publisher.publish([make_outgoing(actor)], timeout_s=0.5)
    assert time.monotonic() - started < 0.5 + 0.5
    publisher.close()


def test_a_connection_that_was_closed_is_opened_again_by_the_next_probe(
    proxied: tuple[RabbitmqBroker, Proxy], channel: Any
) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    before = proxy.accepted
    proxy.cut()
    wait_until(lambda: _probed(publisher) and proxy.accepted == before + 1)
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    assert len(taken(channel, actor.queue_name)) == 2
    publisher.close()


def _probed(publisher: Publisher) -> bool:
    try:
        publisher.probe()
    except BrokerUnavailable:
        return False
    return True


def test_a_connection_lost_in_the_middle_of_a_batch_concerns_all_of_it(
    proxied: tuple[RabbitmqBroker, Proxy],
) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.publish([make_outgoing(actor)], timeout_s=5)
    link = publisher._link  # type: ignore[attr-defined]
    send = link._channel.basic_publish
    link._channel.basic_publish = lambda *args, **kwargs: (send(*args, **kwargs), proxy.cut())
    with pytest.raises(BrokerUnavailable):
        publisher.publish(make_batch(actor, 3), timeout_s=5)
    assert publisher.publish(make_batch(actor, 3), timeout_s=5) == []
    publisher.close()


def test_a_probe_of_a_silent_connection_fails(
    proxied: tuple[RabbitmqBroker, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, proxy = proxied
    monkeypatch.setattr(rabbitmq, "PROBE_INTERVAL_S", 0)
    publisher = publisher_for(broker)
    publisher.probe()
    publisher.probe()
    assert proxy.accepted == 1
    monkeypatch.setattr(rabbitmq, "PROBE_TIMEOUT_S", 0.3)
    proxy.freeze()
    with pytest.raises(BrokerUnavailable, match="in time"):
        publisher.probe()
    publisher.close()


def test_a_probe_knows_that_rabbitmq_blocks_publishers(proxied: tuple[RabbitmqBroker, Proxy]) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.publish([make_outgoing(actor)], timeout_s=5)
    accepted = proxy.accepted
    proxy.inject(pika.frame.Method(0, pika.spec.Connection.Blocked("low on memory")).marshal())
    wait_until(lambda: not _probed(publisher))
    with pytest.raises(BrokerUnavailable, match="low on memory"):
        publisher.publish([make_outgoing(actor)], timeout_s=5)
    proxy.inject(pika.frame.Method(0, pika.spec.Connection.Unblocked()).marshal())
    wait_until(lambda: _probed(publisher))
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    # A new connection would not have known.
    assert proxy.accepted == accepted
    publisher.close()


def test_the_parameters_of_the_broker_stay_as_they_are(rabbitmq_url: str) -> None:
    broker = RabbitmqBroker(url=f"{rabbitmq_url.partition('?')[0]}?heartbeat=30", middleware=[])
    publisher = publisher_for(broker)
    publisher.probe()
    publisher.close()
    assert broker.parameters.heartbeat == 30
