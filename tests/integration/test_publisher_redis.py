"""Whole batches to Redis, beyond the contract of all publishers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from dramatiq import Message, Middleware
from dramatiq.brokers.redis import RedisBroker

from relay.publishers import Publisher
from tests.support.brokers import RedisBrokers, publishing
from tests.support.outgoing import make_actor, make_batch, make_outgoing, mixed_batch

pytestmark = pytest.mark.redis


@pytest.fixture
def broker(redis_brokers: RedisBrokers) -> RedisBroker:
    return redis_brokers.make()


@pytest.fixture
def publisher(broker: RedisBroker) -> Iterator[Publisher]:
    with publishing(broker) as publisher:
        yield publisher


def test_maintenance_runs_as_often_as_with_redis_broker(
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
    heartbeat: Any = broker.client.zscore(f"{broker.namespace}:__heartbeats__", broker.broker_id)
    assert heartbeat / 1000 == pytest.approx(time.time(), abs=5)


def test_a_batch_is_one_round_trip(
    broker: RedisBroker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mixed_batch(broker)
    publisher.publish(batch[:1], timeout_s=5)
    sent: list[list[bytes]] = []
    send = redis.Connection.send_packed_command

    def recorded(self: redis.Connection, command: list[bytes], **options: Any) -> None:
        sent.append(command)
        send(self, command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.Connection, "send_packed_command", recorded)
        publisher.publish(batch, timeout_s=5)
    (pieces,) = sent
    assert b"".join(pieces).count(b"EXEC") == 1


def test_a_message_that_is_no_text_is_refused_and_the_others_are_sent(
    redis_brokers: RedisBrokers, broker: RedisBroker, publisher: Publisher
) -> None:
    actor = make_actor(broker)
    no_text = make_outgoing(actor, payload='"\ud800"')
    (refusal,) = publisher.publish([*make_batch(actor, 2), no_text, make_outgoing(actor)], timeout_s=5)
    assert refusal.outgoing is no_text
    assert "UnicodeEncodeError" in refusal.error
    assert len(redis_brokers.take(broker, actor.queue_name)) == 3


def test_messages_to_a_queue_whose_key_has_another_type_are_refused_and_the_others_are_sent(
    redis_brokers: RedisBrokers, broker: RedisBroker, publisher: Publisher
) -> None:
    taken, free = make_actor(broker), make_actor(broker, actor_name="free")
    broker.client.set(f"{broker.namespace}:{taken.queue_name}", "something else")
    batch = [*make_batch(taken, 2), *make_batch(free, 2)]
    refusals = publisher.publish(batch, timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all("WRONGTYPE" in refusal.error for refusal in refusals)
    assert len(redis_brokers.take(broker, free.queue_name)) == 2


def test_hooks_see_the_id_of_the_message_in_redis(broker: RedisBroker, publisher: Publisher) -> None:
    seen: list[bool] = []

    class Recorder(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            seen.append("redis_message_id" in message.options)

    broker.add_middleware(Recorder())
    publisher.publish(make_batch(make_actor(broker), 2), timeout_s=5)
    assert seen == [True, True]
