"""The keys in Redis are those of RedisBroker; if its layout is not known, RedisBroker writes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq.brokers.redis import RedisBroker

from relay.publishers import Publisher, publisher_for
from relay.publishers.generic import GenericPublisher
from relay.publishers.redis import RedisPublisher
from tests.support.brokers import RedisBrokers, publishing
from tests.support.outgoing import make_actor, make_batch, mixed_batch

pytestmark = pytest.mark.redis

UUID4 = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def broker(redis_brokers: RedisBrokers) -> RedisBroker:
    return redis_brokers.make()


@pytest.fixture
def publisher(broker: RedisBroker) -> Iterator[Publisher]:
    with publishing(broker) as publisher:
        yield publisher


def dump(broker: RedisBroker) -> dict[bytes, Any]:
    """Return all keys of a broker; an index replaces each random id, and the times are left out."""
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
def test_a_batch_leaves_the_keys_of_redis_broker(
    redis_brokers: RedisBrokers, broker: RedisBroker, publisher: Publisher, maintenance_chance: int
) -> None:
    theirs = redis_brokers.make(maintenance_chance=maintenance_chance)
    broker.maintenance_chance = maintenance_chance
    batch = mixed_batch(broker)
    for both in (broker, theirs):
        leave_keys_of_a_dead_worker(both)

    assert publisher.publish(batch, timeout_s=5) == []
    for outgoing in batch:
        theirs.enqueue(outgoing.message())

    left = dump(broker)
    assert left == dump(theirs)
    assert set(left) >= {b":__heartbeats__", b":events", b":events.msgs", b":mail", b":mail.msgs"}
    if maintenance_chance:
        assert len(left[b":events"]) == 6
        assert left[b":__heartbeats__"] == [b"<broker>"]


def leave_keys_of_a_dead_worker(broker: RedisBroker) -> None:
    namespace = broker.namespace
    broker.client.zadd(f"{namespace}:__heartbeats__", {"dead": 1})
    broker.client.sadd(f"{namespace}:__acks__.dead.events", "11111111-1111-4111-8111-111111111111")
    broker.client.hset(f"{namespace}:events.msgs", "11111111-1111-4111-8111-111111111111", "left behind")
    broker.client.zadd(f"{namespace}:events.XQ", {f"expired {n}": 1 for n in range(1200)})
    broker.client.hset(f"{namespace}:events.XQ.msgs", mapping={f"expired {n}": "x" for n in range(1200)})


def test_with_an_unknown_script_the_broker_enqueues_each_message(
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


def test_a_script_with_other_comments_is_known(broker: RedisBroker) -> None:
    broker.scripts["dispatch"].script = b"-- a remark\n" + broker.scripts["dispatch"].script
    assert isinstance(publisher_for(broker), RedisPublisher)


def test_with_an_unknown_message_format_the_broker_enqueues_each_message(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RedisBroker.enqueue
    monkeypatch.setattr(
        RedisBroker, "enqueue", lambda self, message: plain(self, message.copy(options={"shard": 3}))
    )
    assert isinstance(publisher_for(broker), GenericPublisher)
