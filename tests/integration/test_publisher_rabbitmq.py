"""Publish whole batches to RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq import Message, Middleware, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from relay.publishers import Publisher, publisher_for, rabbitmq
from relay.publishers.generic import GenericPublisher
from relay.publishers.rabbitmq import RabbitmqPublisher
from tests.outgoing import make_actor, make_batch, make_outgoing, malformed, unique_name
from tests.processes import wait_until
from tests.rabbitmq import MakeBroker, rabbitmq_brokers, taken

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def make_broker(rabbitmq_url: str) -> Iterator[MakeBroker]:
    with rabbitmq_brokers(rabbitmq_url) as make:
        yield make


@pytest.fixture
def broker(make_broker: MakeBroker) -> RabbitmqBroker:
    return make_broker()


@pytest.fixture
def publisher(broker: RabbitmqBroker) -> Iterator[Publisher]:
    publisher = publisher_for(broker)
    assert isinstance(publisher, RabbitmqPublisher)
    yield publisher
    publisher.close()


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    """A channel by which a test looks at and spoils things."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        yield connection.channel()


def deliveries(channel: Any, queue_name: str) -> list[int]:
    return [Message.decode(body).options["outbox"]["delivery"] for _, body in taken(channel, queue_name)]


# ---------------------------------------------------------------- the same as RabbitmqBroker


@pytest.mark.parametrize("confirm_delivery", [False, True])
def test_a_message_is_the_one_that_rabbitmq_broker_publishes(
    make_broker: MakeBroker, channel: Any, confirm_delivery: bool
) -> None:
    broker = make_broker(confirm_delivery=confirm_delivery, max_priority=9)
    publisher = publisher_for(broker)
    actor = make_actor(broker)
    urgent = '{"args":[1],"kwargs":{},"options":{"broker_priority":7}}'
    plain = '{"args":[1],"kwargs":{}}'
    for outgoing in [
        make_outgoing(actor),
        make_outgoing(actor, kind="actor", payload=plain),
        make_outgoing(actor, kind="actor", payload=urgent),
    ]:
        assert publisher.publish([outgoing], timeout_s=5) == []
        broker.enqueue(outgoing.message())
        (ours, our_body), (theirs, their_body) = taken(channel, actor.queue_name)
        assert Message.decode(our_body) == Message.decode(their_body)
        assert vars(ours) == vars(theirs)
        assert ours.delivery_mode == 2
        assert ours.priority == outgoing.priority
    publisher.close()


def test_a_missing_queue_is_declared_as_the_broker_declares_it(make_broker: MakeBroker, channel: Any) -> None:
    broker = make_broker(max_priority=4)
    publisher, actor = publisher_for(broker), make_actor(broker)
    assert publisher.publish(make_batch(actor, 3), timeout_s=5) == []
    assert broker.queues_pending == set()
    # RabbitMQ refuses to declare what exists with other arguments.
    broker.queues_pending.add(actor.queue_name)
    broker.declare_queue(actor.queue_name, ensure=True)
    assert deliveries(channel, actor.queue_name) == [1, 2, 3]
    publisher.close()


def test_declaring_leaves_no_connection_of_the_broker_behind(
    broker: RabbitmqBroker, publisher: Publisher
) -> None:
    publisher.publish([make_outgoing(make_actor(broker))], timeout_s=5)
    assert not broker.connections


def test_a_batch_keeps_its_order(broker: RabbitmqBroker, publisher: Publisher, channel: Any) -> None:
    actor = make_actor(broker)
    assert publisher.publish(make_batch(actor, 500), timeout_s=10) == []
    assert publisher.publish(make_batch(actor, 2), timeout_s=10) == []
    assert deliveries(channel, actor.queue_name) == [*range(1, 501), 1, 2]


def test_a_worker_runs_what_was_published(broker: RabbitmqBroker, publisher: Publisher) -> None:
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
    finally:
        worker.stop()
    assert sorted(seen, key=repr) == ["caf\u00e9", ((1,), {"b": 2})]


def test_a_subclass_that_enqueues_in_its_own_way_does_so(rabbitmq_url: str) -> None:
    class Counting(RabbitmqBroker):
        def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            return super().enqueue(message, delay=delay)

    class Quorum(RabbitmqBroker):
        pass

    assert isinstance(publisher_for(Counting(url=rabbitmq_url, middleware=[])), GenericPublisher)
    assert isinstance(publisher_for(Quorum(url=rabbitmq_url, middleware=[])), RabbitmqPublisher)


def test_hooks_run_for_each_message_that_goes(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any
) -> None:
    seen: list[tuple[str, int]] = []

    class Recorder(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            seen.append(("before", message.options["outbox"]["delivery"]))
            message.options["trace"] = "abc"

        def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            seen.append(("after", message.options["outbox"]["delivery"]))

    broker.add_middleware(Recorder())
    actor = make_actor(broker)
    publisher.publish([*make_batch(actor, 2), malformed(actor)], timeout_s=5)
    assert seen == [("before", 1), ("before", 2), ("after", 1), ("after", 2)]
    traces = [Message.decode(body).options["trace"] for _, body in taken(channel, actor.queue_name)]
    assert traces == ["abc", "abc"]


# ---------------------------------------------------------------- refusals


def test_a_malformed_message_does_not_keep_the_others(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any
) -> None:
    actor = make_actor(broker)
    bad = malformed(actor)
    # Not a priority that fits into a byte, which only shows when the message is written.
    overdone = '{"args": [], "kwargs": {}, "options": {"broker_priority": 1000}}'
    worse = make_outgoing(actor, kind="actor", payload=overdone)
    refusals = publisher.publish([*make_batch(actor, 2), bad, worse, make_outgoing(actor)], timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == [bad, worse]
    assert deliveries(channel, actor.queue_name) == [1, 2, 17]


def test_messages_that_a_full_queue_refuses_do_not_keep_the_others(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any
) -> None:
    full, free = make_actor(broker), make_actor(broker, actor_name="free")
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(full.queue_name, durable=True, arguments=limits)
    broker.queues_pending.discard(full.queue_name)
    batch = [*make_batch(full, 10), *make_batch(free, 3)]
    refusals = publisher.publish(batch, timeout_s=5)
    refused = [refusal.outgoing.delivery_id for refusal in refusals]
    assert all("nack" in refusal.error for refusal in refusals)
    assert 0 < len(refused) < 10
    assert sorted(refused + deliveries(channel, full.queue_name)) == [*range(1, 11)]
    assert deliveries(channel, free.queue_name) == [1, 2, 3]


def test_a_queue_deleted_behind_our_back_is_declared_again(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any
) -> None:
    deleted, other = make_actor(broker), make_actor(broker, actor_name="other")
    batch = [*make_batch(deleted, 3), *make_batch(other, 3)]
    publisher.publish(batch, timeout_s=5)
    channel.queue_delete(deleted.queue_name)
    taken(channel, other.queue_name)
    assert publisher.publish(batch, timeout_s=5) == []
    assert deliveries(channel, deleted.queue_name) == [1, 2, 3]
    assert deliveries(channel, other.queue_name) == [1, 2, 3]


def test_messages_that_reach_no_queue_do_not_keep_the_others(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = make_actor(broker), make_actor(broker, actor_name="other")
    batch = [*make_batch(lost, 3), *make_batch(other, 3)]
    publisher.publish(batch, timeout_s=5)
    channel.queue_delete(lost.queue_name)
    taken(channel, other.queue_name)
    monkeypatch.setattr(broker, "declare_queue", lambda *args, **kwargs: None)
    refusals = publisher.publish([batch[0], batch[3], batch[1], batch[4]], timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all(lost.queue_name in refusal.error for refusal in refusals)
    assert deliveries(channel, other.queue_name) == [1, 2]


def test_a_queue_that_cannot_be_declared_does_not_keep_the_others(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any
) -> None:
    odd, other = make_actor(broker), make_actor(broker, actor_name="other")
    channel.queue_declare(odd.queue_name, durable=True, arguments={"x-max-length": 5})
    batch = [*make_batch(odd, 2), *make_batch(other, 2)]
    refusals = publisher.publish(batch, timeout_s=5)
    assert [refusal.outgoing for refusal in refusals] == batch[:2]
    assert all("PRECONDITION_FAILED" in refusal.error for refusal in refusals)
    assert deliveries(channel, other.queue_name) == [1, 2]


def test_a_message_over_which_rabbitmq_closes_the_channel_does_not_keep_the_others(
    broker: RabbitmqBroker, publisher: Publisher, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = make_actor(broker)
    plain = rabbitmq._letter

    def letter(parcel: Any) -> Any:
        made = plain(parcel)
        if parcel.outgoing.delivery_id in (3, 40):
            # To this RabbitMQ says what it says to a message that is too large.
            return made._replace(properties=pika.BasicProperties(expiration="soon"))
        return made

    monkeypatch.setattr(rabbitmq, "_letter", letter)
    refusals = publisher.publish(make_batch(actor, 100), timeout_s=10)
    assert sorted(refusal.outgoing.delivery_id for refusal in refusals) == [3, 40]
    assert all("PRECONDITION_FAILED" in refusal.error for refusal in refusals)
    # Some come twice: the channel closed before they were confirmed.
    assert {*deliveries(channel, actor.queue_name)} == {*range(1, 101)} - {3, 40}
    assert publisher.publish(make_batch(actor, 2), timeout_s=5) == []
