"""Publish whole batches to Redis."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message, Middleware, Worker
from dramatiq.brokers.redis import RedisBroker

from relay.messages import Outgoing
from relay.publishers import Publisher, publisher_for
from relay.publishers.redis import RedisPublisher
from tests.outgoing import make_actor, make_batch, make_outgoing, malformed, mixed_batch, unique_name
from tests.processes import wait_until

pytestmark = pytest.mark.redis


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


def enqueued(broker: RedisBroker, queue_name: str) -> list[Message[Any]]:
    """Take the messages off a queue, in their order."""
    ids: Any = broker.client.lrange(f"{broker.namespace}:{queue_name}", 0, -1)
    bodies: Any = broker.client.hgetall(f"{broker.namespace}:{queue_name}.msgs")
    return [Message.decode(bodies[one]) for one in ids]


def test_maintenance_comes_as_often_as_with_redis_broker(
    broker: RedisBroker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.maintenance_chance = 1000  # so 500 messages have one chance in 1 - 0.999 ** 500 = 0.39
    actor = make_actor(broker)
    expired = f"{broker.namespace}:{actor.queue_name}.XQ"
    for drawn, left in [(0.39, 0), (0.40, 1)]:
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        broker.client.zadd(expired, {"expired": 1})
        publisher.publish(make_batch(actor, 500), timeout_s=5)
        assert broker.client.exists(expired) == left


def test_a_process_that_only_publishes_counts_as_alive(broker: RedisBroker, publisher: Publisher) -> None:
    publisher.publish([make_outgoing(make_actor(broker))], timeout_s=5)
    beat: Any = broker.client.zscore(f"{broker.namespace}:__heartbeats__", broker.broker_id)
    assert beat / 1000 == pytest.approx(time.time(), abs=5)


def test_messages_keep_their_order(broker: RedisBroker, publisher: Publisher) -> None:
    actor = make_actor(broker)
    publisher.publish(make_batch(actor, 300), timeout_s=5)
    publisher.publish(make_batch(actor, 300, handler=actor.actor_name), timeout_s=5)
    numbers = [m.options["outbox"]["delivery"] for m in enqueued(broker, actor.queue_name)]
    assert numbers == [*range(1, 301), *range(1, 301)]


def test_a_batch_is_one_round_trip(
    broker: RedisBroker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mixed_batch(broker)
    publisher.publish(batch[:1], timeout_s=5)
    sent: list[list[bytes]] = []
    send = redis.Connection.send_packed_command

    def noted(self: redis.Connection, command: list[bytes], **options: Any) -> None:
        sent.append(command)
        send(self, command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, "send_packed_command", noted)
        publisher.publish(batch, timeout_s=5)
    (pieces,) = sent
    assert b"".join(pieces).count(b"EXEC") == 1


def test_a_worker_runs_what_was_published(broker: RedisBroker, publisher: Publisher) -> None:
    seen: list[Any] = []
    queue = unique_name()

    @dramatiq.actor(broker=broker, queue_name=queue)
    def take(event: dict[str, Any]) -> None:
        seen.append(event["key"])

    @dramatiq.actor(broker=broker, queue_name=queue)
    def call(*args: int, **kwargs: int) -> None:
        seen.append((args, kwargs))

    publisher.publish(
        [
            make_outgoing(take, key="caf\u00e9"),
            make_outgoing(call, kind="actor", payload='{"args": [1], "kwargs": {"b": 2}}'),
        ],
        timeout_s=5,
    )
    worker = Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        wait_until(lambda: len(seen) == 2)
        broker.join(queue, timeout=5000)
    finally:
        worker.stop()
    assert sorted(seen, key=repr) == ["caf\u00e9", ((1,), {"b": 2})]


# ---------------------------------------------------------------- refusals


def test_a_malformed_message_does_not_keep_the_others(broker: RedisBroker, publisher: Publisher) -> None:
    actor = make_actor(broker)
    bad = malformed(actor, delivery_id=9)
    no_text = make_outgoing(actor, payload='"\ud800"')
    refusals = publisher.publish([*make_batch(actor, 2), bad, no_text, make_outgoing(actor)], timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == [bad, no_text]
    assert ["ValueError" in refusals[0].error, "UnicodeEncodeError" in refusals[1].error] == [True, True]
    assert len(enqueued(broker, actor.queue_name)) == 3


def test_a_batch_of_nothing_but_malformed_messages_is_refused(
    broker: RedisBroker, publisher: Publisher
) -> None:
    assert len(publisher.publish([malformed(make_actor(broker))], timeout_s=5)) == 1


def test_a_queue_whose_key_is_taken_does_not_keep_the_others(
    broker: RedisBroker, publisher: Publisher
) -> None:
    taken, free = make_actor(broker), make_actor(broker, actor_name="free")
    broker.client.set(f"{broker.namespace}:{taken.queue_name}", "something else")
    batch = [*make_batch(taken, 2), *make_batch(free, 2)]
    refusals = publisher.publish(batch, timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all("WRONGTYPE" in refusal.error for refusal in refusals)
    assert len(enqueued(broker, free.queue_name)) == 2


# ---------------------------------------------------------------- hooks


class Recorder(Middleware):
    """Take notes, and leave one in each message."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, bool]] = []

    def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
        assert delay is None
        self.seen.append(
            ("before", message.options["outbox"]["delivery"], "redis_message_id" in message.options)
        )
        message.options["trace"] = "abc"

    def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
        self.seen.append(("after", message.options["outbox"]["delivery"], message.options["trace"] == "abc"))


def test_hooks_run_for_each_message_and_may_add_options(broker: RedisBroker, publisher: Publisher) -> None:
    recorder = Recorder()
    broker.add_middleware(recorder)
    actor = make_actor(broker)
    publisher.publish([*make_batch(actor, 2), malformed(actor)], timeout_s=5)
    assert recorder.seen == [("before", 1, True), ("before", 2, True), ("after", 1, True), ("after", 2, True)]
    assert [m.options["trace"] for m in enqueued(broker, actor.queue_name)] == ["abc", "abc"]


def test_no_message_is_built_when_nobody_looks(
    broker: RedisBroker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outgoing, "message", lambda self: pytest.fail("built a message"))
    assert publisher.publish([make_outgoing(make_actor(broker))], timeout_s=5) == []
