"""Leave in Redis what RedisBroker leaves there, or leave it to RedisBroker."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from relay.publishers import Publisher, publisher_for
from relay.publishers.generic import GenericPublisher
from relay.publishers.redis import RedisPublisher
from tests.outgoing import make_actor, make_batch, mixed_batch, unique_name

pytestmark = pytest.mark.redis

UUID4 = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def broker(redis_url: str) -> Iterator[RedisBroker]:
    broker = RedisBroker(url=redis_url, namespace=unique_name(), middleware=[], maintenance_chance=0)
    yield broker
    for key in broker.client.scan_iter(f"{broker.namespace}:*"):
        broker.client.delete(key)
    broker.client.connection_pool.disconnect()


@pytest.fixture
def publisher(broker: RedisBroker) -> Iterator[Publisher]:
    publisher = publisher_for(broker)
    assert isinstance(publisher, RedisPublisher)
    yield publisher
    publisher.close()


def dump(broker: RedisBroker) -> dict[bytes, Any]:
    """Return all that a broker has in Redis; random ids become their place, times become 0."""
    client: Any = broker.client
    dumped: dict[bytes, Any] = {}
    names: dict[bytes, bytes] = {broker.broker_id.encode(): b"<broker>"}
    for key in sorted(client.scan_iter(f"{broker.namespace}:*"), key=lambda key: (len(key), key)):
        if client.type(key) == b"list":
            for place, one in enumerate(client.lrange(key, 0, -1)):
                assert one in names or UUID4.fullmatch(one)
                names.setdefault(one, b"<%b %d>" % (key.removeprefix(broker.namespace.encode()), place))

    def renamed(data: bytes) -> bytes:
        for one, name in names.items():
            data = data.replace(one, name)
        return data

    for key in client.scan_iter(f"{broker.namespace}:*"):
        match client.type(key):
            case b"list":
                value: Any = [renamed(one) for one in client.lrange(key, 0, -1)]
            case b"hash":
                value = {renamed(field): renamed(body) for field, body in client.hgetall(key).items()}
            case b"zset":
                value = [renamed(one) for one in client.zrange(key, 0, -1)]
            case b"set":
                value = {renamed(one) for one in client.smembers(key)}
        dumped[renamed(key.removeprefix(broker.namespace.encode()))] = value
    return dumped


@pytest.mark.parametrize("maintenance_chance", [0, 1_000_000])
def test_the_keys_left_in_redis_are_those_of_redis_broker(
    broker: RedisBroker, publisher: Publisher, redis_url: str, maintenance_chance: int
) -> None:
    theirs = RedisBroker(
        url=redis_url, namespace=unique_name(), middleware=[], maintenance_chance=maintenance_chance
    )
    broker.maintenance_chance = maintenance_chance
    batch = mixed_batch(broker)
    for one in (broker, theirs):
        leave_traces_of_a_dead_worker(one)

    assert publisher.publish(batch, timeout_s=5) == []
    for outgoing in batch:
        theirs.enqueue(outgoing.message())

    left = dump(broker)
    assert left == dump(theirs)
    assert set(left) >= {b":__heartbeats__", b":events", b":events.msgs", b":mail", b":mail.msgs"}
    if maintenance_chance:
        assert len(left[b":events"]) == 6
        assert left[b":__heartbeats__"] == [b"<broker>"]
    theirs.client.connection_pool.disconnect()


def leave_traces_of_a_dead_worker(broker: RedisBroker) -> None:
    namespace = broker.namespace
    broker.client.zadd(f"{namespace}:__heartbeats__", {"dead": 1})
    broker.client.sadd(f"{namespace}:__acks__.dead.events", "11111111-1111-4111-8111-111111111111")
    broker.client.hset(f"{namespace}:events.msgs", "11111111-1111-4111-8111-111111111111", "left behind")
    broker.client.zadd(f"{namespace}:events.XQ", {f"expired {n}": 1 for n in range(1200)})
    broker.client.hset(f"{namespace}:events.XQ.msgs", mapping={f"expired {n}": "x" for n in range(1200)})


class Counting(RedisBroker):
    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        return super().enqueue(message, delay=delay)


class Renaming(RedisBroker):
    """A later Dramatiq, as it were, that keeps messages elsewhere."""


def test_a_broker_that_enqueues_in_its_own_way_does_so(redis_url: str) -> None:
    broker = Counting(url=redis_url, namespace=unique_name(), middleware=[])
    assert isinstance(publisher_for(broker), GenericPublisher)


def test_a_subclass_that_enqueues_as_its_base_is_published_to_in_bulk(redis_url: str) -> None:
    broker = Renaming(url=redis_url, namespace=unique_name(), middleware=[])
    assert isinstance(publisher_for(broker), RedisPublisher)


def test_an_unknown_script_falls_back_to_the_broker(
    broker: RedisBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.scripts["dispatch"].script += b"\nreturn 1"
    with caplog.at_level(logging.WARNING):
        publisher = publisher_for(broker)
    assert isinstance(publisher, GenericPublisher)
    assert "one at a time" in caplog.text
    actor = make_actor(broker)
    publisher.probe()
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
    assert broker.client.llen(f"{broker.namespace}:{actor.queue_name}") == 2


def test_comments_in_the_script_change_nothing(broker: RedisBroker) -> None:
    broker.scripts["dispatch"].script = b"-- a remark\n" + broker.scripts["dispatch"].script
    assert isinstance(publisher_for(broker), RedisPublisher)


def test_an_unknown_form_of_message_falls_back_to_the_broker(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RedisBroker.enqueue
    monkeypatch.setattr(
        RedisBroker, "enqueue", lambda self, message: plain(self, message.copy(options={"shard": 3}))
    )
    assert isinstance(publisher_for(broker), GenericPublisher)
