"""Publish to a Redis server that is down, silent, full, or at another address."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from redis.sentinel import Sentinel

from outbox.errors import BrokerFull, BrokerUnavailable
from relay.publishers import Publisher, publisher_for
from tests.support.brokers import RedisBrokers, publishing
from tests.support.outgoing import make_actor, make_batch, make_outgoing
from tests.support.processes import Process

pytestmark = pytest.mark.redis


def queued(broker: RedisBroker, queue_name: str) -> int:
    """Return the number of messages on a queue."""
    count: Any = broker.client.llen(f"{broker.namespace}:{queue_name}")
    return int(count)


def test_a_connection_that_opens_after_the_timeout_is_closed(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed, closed = threading.Event(), threading.Event()
    slow = SimpleNamespace(connect=lambda: proceed.wait(20), disconnect=closed.set)
    monkeypatch.setattr("relay.publishers.redis.own_connection", lambda *_: slow)
    broker = RedisBroker(host="127.0.0.1", port=silent_port, middleware=[])
    with pytest.raises(BrokerUnavailable):
        publisher_for(broker).publish([make_outgoing(make_actor(broker))], timeout_s=0.3)
    assert not closed.is_set()
    proceed.set()
    assert closed.wait(20)


def test_a_refused_connection_is_reported_with_the_port(closed_port: int) -> None:
    publisher = publisher_for(RedisBroker(host="127.0.0.1", port=closed_port, middleware=[]))
    with pytest.raises(BrokerUnavailable, match=str(closed_port)):
        publisher.probe()


@pytest.mark.parametrize("count", [1, 2])
def test_a_publish_over_a_lost_connection_is_repeated_over_a_new_one(
    redis_brokers: RedisBrokers, count: int
) -> None:
    with redis_brokers.proxied() as (broker, proxy), publishing(broker) as publisher:
        actor = make_actor(broker)
        publisher.publish([make_outgoing(actor)], timeout_s=20)
        proxy.cut()
        assert publisher.publish(make_batch(actor, count), timeout_s=20) == []
        assert proxy.accepted == 2
        assert queued(broker, actor.queue_name) == 1 + count


def test_a_probe_of_a_lost_connection_fails_and_the_next_one_reconnects(
    redis_brokers: RedisBrokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishers.redis.PROBE_INTERVAL_S", 0)
    with redis_brokers.proxied() as (broker, proxy), publishing(broker) as publisher:
        publisher.probe()
        proxy.cut()
        with pytest.raises(BrokerUnavailable):
            publisher.probe()
        publisher.probe()


# ---------------------------------------------------------------- a server that the test may stop


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on PATH for a test that has to stop it")
    with Server(tmp_path) as server:
        yield server


class Server:
    """A Redis server that a test may stop, and whose settings it may change."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.socket = str(folder / "redis.sock")
        self.client = redis.Redis(port=self.port)
        self._folder = str(folder)
        self._running = ExitStack()

    def __enter__(self) -> Server:
        address = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        process = Process("redis-server", *address, "--dir", self._folder, "--save", "", env={})
        self._running.enter_context(process).wait_for_line("Ready to accept connections")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def kill(self) -> None:
        self._running.close()

    def broker(self, **options: Any) -> RedisBroker:
        return RedisBroker(middleware=[], **({"host": "127.0.0.1", "port": self.port} | options))


def test_a_stopped_server_is_unavailable_until_it_is_back(server: Server) -> None:
    broker = server.broker()
    publisher, actor = publisher_for(broker), make_actor(broker)
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    server.kill()
    with pytest.raises(BrokerUnavailable):
        publisher.publish(make_batch(actor, 2), timeout_s=5)
    with pytest.raises(BrokerUnavailable):
        publisher.probe()
    server.__enter__()
    publisher.probe()
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    assert queued(broker, actor.queue_name) == 2
    publisher.close()
    broker.client.connection_pool.disconnect()


def test_a_full_or_read_only_server_fails_the_whole_batch(server: Server) -> None:
    broker = server.broker()
    publisher, actor = publisher_for(broker), make_actor(broker)
    for setting, value, usual, error in [
        ("maxmemory", "1", "0", "OOM|OutOfMemory"),
        ("min-replicas-to-write", "1", "0", "NOREPLICAS|NoReplicas|replicas"),
    ]:
        server.client.config_set(setting, value)
        with pytest.raises(BrokerUnavailable, match=error):
            publisher.publish(make_batch(actor, 2), timeout_s=5)
        server.client.config_set(setting, usual)
        assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    assert queued(broker, actor.queue_name) == 4
    publisher.close()
    broker.client.connection_pool.disconnect()


def fill(server: Server, policy: str) -> None:
    """Lower the limit of the server's memory to what it uses."""
    server.client.config_set("maxmemory-policy", policy)
    memory: Any = server.client.info("memory")
    server.client.config_set("maxmemory", memory["used_memory"])


@pytest.fixture(params=["batches", "one by one"])
def memory_publisher(
    request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Publisher]:
    """Make a publisher that looks at the server's memory at each probe."""
    monkeypatch.setattr("relay.publishers.redis.PROBE_INTERVAL_S", 0)
    broker = server.broker()
    if request.param == "one by one":
        # A broker with its own `enqueue` has the generic publisher.
        monkeypatch.setattr(broker, "enqueue", broker.enqueue, raising=False)
    with publishing(broker) as publisher:
        publisher.probe()
        yield publisher
    broker.client.connection_pool.disconnect()


def test_a_probe_fails_while_the_server_has_little_memory_left(
    server: Server, memory_publisher: Publisher
) -> None:
    fill(server, "noeviction")
    for _ in range(2):
        with pytest.raises(BrokerFull, match="80% of its maxmemory"):
            memory_publisher.probe()
    server.client.config_set("maxmemory", 2**30)
    memory_publisher.probe()


def test_a_server_that_may_evict_messages_is_reported_once_and_gets_messages(
    server: Server, memory_publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    fill(server, "allkeys-lru")
    for _ in range(3):
        memory_publisher.probe()
    (record,) = (one for one in caplog.records if one.levelname == "ERROR")
    assert "Redis may evict messages: its maxmemory-policy is 'allkeys-lru'" in record.message


def test_a_server_that_evicts_only_keys_with_a_lifetime_gets_messages(
    server: Server, memory_publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    fill(server, "volatile-lru")
    memory_publisher.probe()
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_server_that_does_not_report_its_memory_gets_messages(
    server: Server, memory_publisher: Publisher
) -> None:
    fill(server, "noeviction")
    server.client.acl_setuser("default", enabled=True, nopass=True, keys="*", commands=["+@all", "-info"])
    memory_publisher.probe()


TOO_LONG = "x" * 2**20


def test_a_message_over_the_protocol_limit_is_found_and_the_others_are_sent(server: Server) -> None:
    # The smallest limit that Redis accepts. It closes the connection of a client that exceeds it.
    server.client.config_set("proto-max-bulk-len", 2**20)
    broker = server.broker()
    publisher, actor = publisher_for(broker), make_actor(broker)
    bad = [make_outgoing(actor, delivery_id=90 + n, payload=f'"{TOO_LONG}"') for n in range(2)]
    good = make_batch(actor, 60)
    batch = [*good[:7], bad[0], *good[7:40], bad[1], *good[40:]]
    refusals = publisher.publish(batch, timeout_s=60)
    assert [(refusal.outgoing, refusal.is_proved) for refusal in refusals] == [(one, False) for one in bad]
    assert queued(broker, actor.queue_name) == len(good)
    # Redis has taken other messages since, so now it is known that it refuses these two.
    refusals = publisher.publish(batch, timeout_s=60)
    assert [(refusal.outgoing, refusal.is_proved) for refusal in refusals] == [(one, True) for one in bad]
    publisher.close()
    broker.client.connection_pool.disconnect()


def test_a_server_that_drops_every_message_fails_the_batch(server: Server) -> None:
    server.client.config_set("proto-max-bulk-len", 2**20)
    broker = server.broker()
    publisher, actor = publisher_for(broker), make_actor(broker)
    with pytest.raises(BrokerUnavailable, match="took 0 messages"):
        publisher.publish(make_batch(actor, 20, payload=f'"{TOO_LONG}"'), timeout_s=60)
    assert publisher.publish([make_outgoing(actor)], timeout_s=60) == []
    publisher.close()
    broker.client.connection_pool.disconnect()


def test_a_batch_is_sent_over_a_unix_socket(server: Server) -> None:
    broker = server.broker(client=redis.Redis(unix_socket_path=server.socket))
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.probe()
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    assert queued(broker, actor.queue_name) == 2
    publisher.close()
    broker.client.connection_pool.disconnect()


def test_a_batch_is_sent_to_the_master_of_the_sentinels(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor shop 127.0.0.1 {server.port} 1\n")
    with Process("redis-server", str(config), "--sentinel", env={}) as sentinel:
        sentinel.wait_for_line("monitor master shop")
        sentinels = Sentinel([("127.0.0.1", port)])
        broker = server.broker(client=sentinels.master_for("shop"))
        publisher, actor = publisher_for(broker), make_actor(broker)
        publisher.probe()
        assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
        assert queued(broker, actor.queue_name) == 2
        publisher.close()
        broker.client.connection_pool.disconnect()
        for client in sentinels.sentinels:
            client.close()
