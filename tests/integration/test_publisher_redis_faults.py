"""Publish to a Redis that is away, silent, full, or elsewhere."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from redis.sentinel import Sentinel

from outbox.errors import BrokerUnavailable
from relay.publishers import publisher_for
from tests.outgoing import make_actor, make_batch, make_outgoing, unique_name
from tests.processes import Process
from tests.proxy import Proxy

pytestmark = pytest.mark.redis


def queued(broker: RedisBroker, queue_name: str) -> int:
    """Return the number of messages on a queue."""
    count: Any = broker.client.llen(f"{broker.namespace}:{queue_name}")
    return int(count)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen, let clients connect, and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_never_answers_is_given_up_in_time(silent_port: int) -> None:
    broker = RedisBroker(host="127.0.0.1", port=silent_port, middleware=[], socket_timeout=None)
    publisher = publisher_for(broker)
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publisher.publish([make_outgoing(make_actor(broker))], timeout_s=0.6)
    assert time.monotonic() - started < 0.6 + 0.3


def test_a_connection_that_stands_too_late_is_closed(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, closed = threading.Event(), threading.Event()
    slow = SimpleNamespace(connect=lambda: go_on.wait(20), disconnect=closed.set)
    monkeypatch.setattr("relay.publishers.redis.own_connection", lambda *_: slow)
    broker = RedisBroker(host="127.0.0.1", port=silent_port, middleware=[])
    with pytest.raises(BrokerUnavailable):
        publisher_for(broker).publish([make_outgoing(make_actor(broker))], timeout_s=0.3)
    assert not closed.is_set()
    go_on.set()
    assert closed.wait(20)


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    publisher = publisher_for(RedisBroker(url=f"redis://:hush@127.0.0.1:{port}/0", middleware=[]))
    with pytest.raises(BrokerUnavailable, match=str(port)) as caught:
        publisher.probe()
    assert "hush" not in str(caught.value)


@pytest.fixture
def proxied(redis_url: str) -> Iterator[tuple[RedisBroker, Proxy]]:
    url = urlsplit(redis_url)
    with Proxy(url.port or 6379, url.hostname or "127.0.0.1") as proxy:
        login, at, _ = url.netloc.rpartition("@")
        through = url._replace(netloc=f"{login}{at}127.0.0.1:{proxy.port}").geturl()
        broker = RedisBroker(url=through, namespace=unique_name(), middleware=[])
        yield broker, proxy
        proxy.thaw()
        broker.client.connection_pool.disconnect()


def test_a_network_that_falls_silent_is_given_up_in_time(proxied: tuple[RedisBroker, Proxy]) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.publish([make_outgoing(actor)], timeout_s=0.6)
    proxy.freeze()
    started = time.monotonic()
    # More than the buffers of the sockets hold, so that sending, too, stops.
    batch = make_batch(actor, 200, payload=f'"{"x" * 65536}"')
    with pytest.raises(BrokerUnavailable):
        publisher.publish(batch, timeout_s=0.6)
    assert time.monotonic() - started < 0.6 + 0.4
    proxy.thaw()
    publisher.probe()
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    publisher.close()


def test_a_connection_that_the_server_closed_is_opened_again(proxied: tuple[RedisBroker, Proxy]) -> None:
    broker, proxy = proxied
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.publish([make_outgoing(actor)], timeout_s=5)
    proxy.cut()
    with pytest.raises(BrokerUnavailable):
        publisher.publish([make_outgoing(actor)], timeout_s=5)
    publisher.probe()
    assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    assert proxy.accepted == 2
    publisher.close()


def test_a_probe_notices_a_lost_connection(
    proxied: tuple[RedisBroker, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, proxy = proxied
    publisher = publisher_for(broker)
    publisher.probe()
    proxy.cut()
    monkeypatch.setattr("relay.publishers.redis.PROBE_INTERVAL_S", 0)
    with pytest.raises(BrokerUnavailable):
        publisher.probe()
    publisher.probe()
    publisher.close()


# ---------------------------------------------------------------- a server of the test's own


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on PATH for a test that has to stop it")
    with Server(tmp_path) as server:
        yield server


class Server:
    """A Redis server that a test may stop and fill up."""

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


def test_a_server_that_dies_is_away_until_it_is_back(server: Server) -> None:
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


def test_a_server_that_is_full_or_read_only_concerns_the_whole_batch(server: Server) -> None:
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


def test_a_batch_goes_through_a_socket_file(server: Server) -> None:
    broker = server.broker(client=redis.Redis(unix_socket_path=server.socket))
    publisher, actor = publisher_for(broker), make_actor(broker)
    publisher.probe()
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    assert queued(broker, actor.queue_name) == 2
    publisher.close()
    broker.client.connection_pool.disconnect()


def test_a_batch_goes_to_the_master_that_sentinels_name(server: Server, tmp_path: Path) -> None:
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
