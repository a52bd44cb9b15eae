"""Whole batches to RabbitMQ, beyond the contract of all publishers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from dramatiq import Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from relay.publishers import Publisher, rabbitmq
from tests.support.brokers import RabbitmqBrokers, delivery_ids, publishing
from tests.support.outgoing import make_actor, make_batch, make_outgoing

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def broker(rabbitmq_brokers: RabbitmqBrokers) -> RabbitmqBroker:
    return rabbitmq_brokers.make()


@pytest.fixture
def publisher(broker: RabbitmqBroker) -> Iterator[Publisher]:
    with publishing(broker) as publisher:
        yield publisher


@pytest.fixture
def channel(rabbitmq_brokers: RabbitmqBrokers) -> Any:
    """Return a channel by which the test looks at queues and changes them."""
    return rabbitmq_brokers.channel


@pytest.fixture
def deliveries(rabbitmq_brokers: RabbitmqBrokers, broker: RabbitmqBroker) -> Any:
    """Return a function that takes all messages off a queue and returns the ids of their deliveries."""
    return lambda queue_name: delivery_ids(rabbitmq_brokers.take(broker, queue_name))


# ---------------------------------------------------------------- the same as RabbitmqBroker


@pytest.mark.parametrize("confirm_delivery", [False, True])
def test_a_message_equals_that_of_rabbitmq_broker(
    rabbitmq_brokers: RabbitmqBrokers, confirm_delivery: bool
) -> None:
    broker = rabbitmq_brokers.make(confirm_delivery=confirm_delivery, max_priority=9)
    actor = make_actor(broker)
    urgent = '{"args":[1],"kwargs":{},"options":{"broker_priority":7}}'
    plain = '{"args":[1],"kwargs":{}}'
    outgoing = [
        make_outgoing(actor),
        make_outgoing(actor, kind="actor", payload=plain),
        make_outgoing(actor, kind="actor", payload=urgent),
    ]
    with publishing(broker) as publisher:
        for one in outgoing:
            assert publisher.publish([one], timeout_s=5) == []
            broker.enqueue(one.message())
            (ours, our_body), (theirs, their_body) = rabbitmq_brokers.take_raw(actor.queue_name)
            assert Message.decode(our_body) == Message.decode(their_body)
            assert vars(ours) == vars(theirs)
            assert ours.delivery_mode == 2
            assert ours.priority == one.priority


def test_a_missing_queue_is_declared_as_the_broker_declares_it(rabbitmq_brokers: RabbitmqBrokers) -> None:
    broker = rabbitmq_brokers.make(max_priority=4)
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        assert publisher.publish(make_batch(actor, 3), timeout_s=5) == []
    assert broker.queues_pending == set()
    # RabbitMQ refuses to declare a queue that exists with other arguments.
    broker.queues_pending.add(actor.queue_name)
    broker.declare_queue(actor.queue_name, ensure=True)
    assert delivery_ids(rabbitmq_brokers.take(broker, actor.queue_name)) == [1, 2, 3]


def test_declaring_a_queue_leaves_no_connection_of_the_broker(
    broker: RabbitmqBroker, publisher: Publisher
) -> None:
    publisher.publish([make_outgoing(make_actor(broker))], timeout_s=5)
    assert not broker.connections


# ---------------------------------------------------------------- refusals


def test_a_message_with_a_priority_that_is_no_byte_is_refused_and_the_others_are_sent(
    broker: RabbitmqBroker, publisher: Publisher, deliveries: Any
) -> None:
    actor = make_actor(broker)
    # The error comes only when the message is written to the connection.
    payload = '{"args": [], "kwargs": {}, "options": {"broker_priority": 1000}}'
    bad = make_outgoing(actor, kind="actor", payload=payload)
    refusals = publisher.publish([*make_batch(actor, 2), bad, make_outgoing(actor)], timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == [bad]
    assert deliveries(actor.queue_name) == [1, 2, 17]


def test_messages_to_a_full_queue_cost_no_attempt_and_the_others_are_sent(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any, deliveries: Any
) -> None:
    full, free = make_actor(broker), make_actor(broker, actor_name="free")
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(full.queue_name, durable=True, arguments=limits)
    broker.queues_pending.discard(full.queue_name)
    batch = [*make_batch(full, 10), *make_batch(free, 3)]
    refusals = publisher.publish(batch, timeout_s=5)
    refused = [refusal.outgoing.delivery_id for refusal in refusals]
    assert all("nack" in refusal.error and not refusal.is_proved for refusal in refusals)
    assert 0 < len(refused) < 10
    assert sorted(refused + deliveries(full.queue_name)) == [*range(1, 11)]
    assert deliveries(free.queue_name) == [1, 2, 3]


def test_a_deleted_queue_is_declared_again(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any, deliveries: Any
) -> None:
    deleted, other = make_actor(broker), make_actor(broker, actor_name="other")
    batch = [*make_batch(deleted, 3), *make_batch(other, 3)]
    publisher.publish(batch, timeout_s=5)
    channel.queue_delete(deleted.queue_name)
    deliveries(other.queue_name)
    assert publisher.publish(batch, timeout_s=5) == []
    assert deliveries(deleted.queue_name) == [1, 2, 3]
    assert deliveries(other.queue_name) == [1, 2, 3]


def test_messages_without_a_queue_are_refused_and_the_others_are_sent(
    broker: RabbitmqBroker,
    publisher: Publisher,
    channel: Any,
    deliveries: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost, other = make_actor(broker), make_actor(broker, actor_name="other")
    batch = [*make_batch(lost, 3), *make_batch(other, 3)]
    publisher.publish(batch, timeout_s=5)
    channel.queue_delete(lost.queue_name)
    deliveries(other.queue_name)
    monkeypatch.setattr(broker, "declare_queue", lambda *args, **kwargs: None)
    refusals = publisher.publish([batch[0], batch[3], batch[1], batch[4]], timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all(lost.queue_name in refusal.error for refusal in refusals)
    assert deliveries(other.queue_name) == [1, 2]


def test_messages_to_a_queue_that_cannot_be_declared_are_refused_and_the_others_are_sent(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any, deliveries: Any
) -> None:
    odd, other = make_actor(broker), make_actor(broker, actor_name="other")
    channel.queue_declare(odd.queue_name, durable=True, arguments={"x-max-length": 5})
    batch = [*make_batch(odd, 2), *make_batch(other, 2)]
    refusals = publisher.publish(batch, timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all("PRECONDITION_FAILED" in refusal.error for refusal in refusals)
    assert deliveries(other.queue_name) == [1, 2]


def test_a_message_that_closes_the_channel_is_refused_and_the_others_are_sent(
    broker: RabbitmqBroker,
    publisher: Publisher,
    deliveries: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = make_actor(broker)
    plain = rabbitmq._amqp_message

    def amqp_message(encoded: Any) -> Any:
        made = plain(encoded)
        if encoded.outgoing.delivery_id in (3, 40):
            # RabbitMQ answers as it does to a message that is too large.
            return made._replace(properties=pika.BasicProperties(expiration="soon"))
        return made

    monkeypatch.setattr(rabbitmq, "_amqp_message", amqp_message)
    refusals = publisher.publish(make_batch(actor, 100), timeout_s=10)
    assert sorted(refusal.outgoing.delivery_id for refusal in refusals) == [3, 40]
    assert all("PRECONDITION_FAILED" in refusal.error for refusal in refusals)
    # Some messages are duplicates: the channel was closed before RabbitMQ confirmed them.
    assert {*deliveries(actor.queue_name)} == {*range(1, 101)} - {3, 40}
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
