"""What is overdue goes again only if its message is not on its way any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import dramatiq
import pika
import pytest
from django.db import connections, transaction
from django.db.models.functions import Now
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from relay.copies import Held, Overdue
from relay.dispatch import Dispatcher
from relay.housekeeping import Housekeeping
from relay.redelivery import MAX_TIMEOUTS_HELD
from tests.helpers import publish, relay_all
from tests.outgoing import unique_name
from tests.rabbitmq import rabbitmq_brokers

pytestmark = pytest.mark.django_db(transaction=True)

TIMEOUT_S = 600


@pytest.fixture(autouse=True)
def confirm_timeout(settings: Any) -> None:
    settings.OUTBOX = {"CONFIRM_TIMEOUT": TIMEOUT_S}


@pytest.fixture
def redis_broker(redis_url: str) -> Iterator[RedisBroker]:
    broker = RedisBroker(url=redis_url, namespace=unique_name(), middleware=[], maintenance_chance=0)
    yield broker
    lose_everything(broker)
    broker.client.connection_pool.disconnect()


@pytest.fixture
def rabbitmq_broker(rabbitmq_url: str) -> Iterator[RabbitmqBroker]:
    with rabbitmq_brokers(rabbitmq_url) as make:
        yield make()


@contextmanager
def handler_on(broker: Broker, **options: Any) -> Iterator[dramatiq.Actor[..., Any]]:
    """Declare a handler of `shop.*` that gets its messages from a broker of the test's."""
    name = unique_name()
    actor = outbox.handler("shop.*", name=name, queue_name=name, broker=broker, **options)(lambda event: None)
    try:
        yield actor
    finally:
        registry.remove(name)


def lose_everything(broker: RedisBroker) -> None:
    for key in broker.client.scan_iter(f"{broker.namespace}:*"):
        broker.client.delete(key)


def lose(broker: RedisBroker, count: int) -> None:
    """Have Redis lose so many of the messages of its one queue."""
    (messages,) = broker.client.keys(f"{broker.namespace}:*.msgs")
    broker.client.hdel(messages, *broker.client.hkeys(messages)[:count])


def dispatch(count: int = 1) -> list[Event]:
    """Publish events, dispatch them, and let the time for their confirmation pass."""
    events = [publish("shop.paid", n) for n in range(count)]
    relay_all()
    pass_the_time()
    return events


def pass_the_time() -> None:
    Delivery.objects.unconfirmed().update(confirm_by=Now() - timedelta(seconds=1))


def redeliver() -> dict[str, int]:
    """Do the relay's round over what is overdue, and return how many deliveries are in which state."""
    with closing(Dispatcher(database="default")) as dispatcher:
        Housekeeping(database="default", ask=dispatcher.holds).redeliver()
    states = list(Delivery.objects.values_list("status", flat=True))
    return {state: states.count(state) for state in set(states)}


# ---------------------------------------------------------------- Redis


@pytest.mark.redis
def test_a_message_that_waits_in_redis_is_not_sent_again(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch(3)
        assert redeliver() == {"dispatched": 3}
    assert not Delivery.objects.overdue().exists()


@pytest.mark.redis
def test_a_message_that_redis_lost_is_sent_again(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch(3)
        lose(redis_broker, 2)
        assert redeliver() == {"pending": 2, "dispatched": 1}


@pytest.mark.redis
def test_each_dispatch_is_known_by_itself(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch()
        lose_everything(redis_broker)
        assert redeliver() == {"pending": 1}
        relay_all()
        pass_the_time()
        assert redeliver() == {"dispatched": 1}
        lose_everything(redis_broker)
        pass_the_time()
        assert redeliver() == {"pending": 1}


@pytest.mark.redis
def test_deliveries_that_share_a_message_wait_for_it_together(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker, batch_size=3, batch_wait=timedelta(hours=1)) as actor:
        dispatch(3)
        assert redis_broker.client.llen(f"{redis_broker.namespace}:{actor.queue_name}") == 1
        assert redeliver() == {"dispatched": 3}
        lose_everything(redis_broker)
        pass_the_time()
        assert redeliver() == {"pending": 3}


@pytest.mark.redis
def test_of_packs_sent_together_only_what_the_lost_one_held_is_sent_again(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker, pack=4):
        with transaction.atomic():
            outbox.publish_many({"topic": "shop.paid", "payload": n} for n in range(11))
        relay_all()
        pass_the_time()
        (bodies,) = redis_broker.client.keys(f"{redis_broker.namespace}:*.msgs")
        held = {
            name: json.loads(body)["options"]["outbox"]["pack"]
            for name, body in redis_broker.client.hgetall(bodies).items()
        }
        assert 3 <= len(held) <= 4
        assert redeliver() == {"dispatched": 11}
        pass_the_time()
        lost = next(name for name, deliveries in held.items() if len(deliveries) > 1)
        redis_broker.client.hdel(bodies, lost)
        redeliver()
        assert set(Delivery.objects.pending().values_list("pk", flat=True)) == set(held[lost])


@pytest.mark.redis
def test_a_message_that_a_worker_has_is_not_sent_again_until_it_is_done_with(
    redis_broker: RedisBroker,
) -> None:
    with handler_on(redis_broker) as actor:
        dispatch()
        consumer: Any = redis_broker.consume(actor.queue_name)
        message = next(consumer)
        assert redeliver() == {"dispatched": 1}
        consumer.ack(message)
        pass_the_time()
        assert redeliver() == {"pending": 1}


@pytest.mark.redis
def test_asking_gives_back_what_a_dead_worker_had(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker) as actor:
        dispatch()
        next(redis_broker.consume(actor.queue_name))
        redis_broker.client.zadd(f"{redis_broker.namespace}:__heartbeats__", {redis_broker.broker_id: 1})
        redis_broker.broker_id = "another"
        assert redeliver() == {"dispatched": 1}
        assert redis_broker.client.llen(f"{redis_broker.namespace}:{actor.queue_name}") == 1


@pytest.mark.redis
def test_a_retry_is_waited_for_while_its_queue_is_deep(
    redis_broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishers.redis.DEEP_QUEUE", 1)
    with handler_on(redis_broker) as actor:
        event, *_ = dispatch(2)
        consumer: Any = redis_broker.consume(actor.queue_name)
        message = next(consumer)
        redis_broker.enqueue(message._message, delay=60_000)
        consumer.ack(message)
        Delivery.objects.filter(event=event).update(error="the first try failed")
        assert redeliver() == {"dispatched": 2}
        redis_broker.client.delete(f"{redis_broker.namespace}:{actor.queue_name}.DQ.msgs")
        pass_the_time()
        assert redeliver() == {"dispatched": 1, "pending": 1}
        assert Delivery.objects.pending().get().event_id == event.pk


# ---------------------------------------------------------------- RabbitMQ


@pytest.mark.rabbitmq
def test_nothing_is_sent_again_to_a_deep_queue(
    rabbitmq_broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishers.rabbitmq.DEEP_QUEUE", 2)
    with handler_on(rabbitmq_broker) as actor:
        dispatch(3)
        assert redeliver() == {"dispatched": 3}
        assert not Delivery.objects.overdue().exists()
        rabbitmq_broker.flush(actor.queue_name)
        pass_the_time()
        assert redeliver() == {"pending": 3}


@pytest.mark.rabbitmq
def test_a_pack_makes_a_queue_as_deep_as_its_deliveries_would(
    rabbitmq_broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishers.rabbitmq.DEEP_QUEUE", 4)
    with handler_on(rabbitmq_broker, pack=5) as actor:
        dispatch()
        assert redeliver() == {"dispatched": 1}
        rabbitmq_broker.flush(actor.queue_name)
        pass_the_time()
        assert redeliver() == {"pending": 1}


@pytest.mark.rabbitmq
def test_a_queue_that_rabbitmq_lost_holds_nothing(rabbitmq_broker: RabbitmqBroker, rabbitmq_url: str) -> None:
    with handler_on(rabbitmq_broker) as actor:
        dispatch(2)
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            for queue in (actor.queue_name, f"{actor.queue_name}.DQ"):
                connection.channel().queue_delete(queue)
        assert redeliver() == {"pending": 2}


# ---------------------------------------------------------------- any broker


@pytest.mark.redis
@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    "make_broker",
    [
        pytest.param(lambda: RedisBroker(url="redis://127.0.0.1:1", middleware=[]), id="redis"),
        pytest.param(lambda: RabbitmqBroker(url="amqp://127.0.0.1:1", middleware=[]), id="rabbitmq"),
    ],
)
def test_nothing_is_sent_again_to_a_broker_that_is_away(make_broker: Any) -> None:
    with handler_on(make_broker()) as actor:
        event = publish("shop.paid")
        assert (
            Delivery.objects.filter(event=event, handler=actor.actor_name).mark_dispatched(timedelta()) == 1
        )
        pass_the_time()
        assert redeliver() == {"dispatched": 1}
    left = Delivery.objects.filter(confirm_by__gt=Now(), confirm_by__lt=Now() + timedelta(seconds=31))
    assert left.get().redeliveries == 0


def test_the_broker_is_not_believed_for_ever() -> None:
    asked: list[int] = []

    def ask(overdue: Any, *, timeout_s: float) -> Held:
        asked.extend(row.delivery_id for row in overdue)
        return Held(there={row.delivery_id for row in overdue})

    events = [publish("flaky.one"), publish("flaky.other")]
    relay_all()
    pass_the_time()
    old = Delivery.objects.filter(event=events[0])
    old.update(dispatched_at=Now() - MAX_TIMEOUTS_HELD * timedelta(seconds=TIMEOUT_S + 1))
    Housekeeping(database="default", ask=ask).redeliver()
    assert [old.get().status, events[1].deliveries.get().status] == ["pending", "dispatched"]
    assert asked == [events[1].deliveries.get().pk]


@pytest.mark.postgres
def test_a_row_that_a_transactional_handler_has_locked_keeps_nobody_waiting() -> None:
    event = publish("flaky.one")
    relay_all()
    pass_the_time()
    delivery = event.deliveries.get()
    other = connections["default"].copy()
    with closing(other), other.cursor() as cursor, transaction.atomic():
        other.set_autocommit(False)
        cursor.execute("SELECT FROM outbox_delivery WHERE id = %s FOR UPDATE", [delivery.pk])
        assert Delivery.objects.filter(pk=delivery.pk).extend(timedelta(hours=1)) == 0
        assert Delivery.objects.redeliver_overdue(limit=1, max_redeliveries=1) == (0, 0)
        other.rollback()
    assert Delivery.objects.filter(pk=delivery.pk).extend(timedelta(hours=1)) == 1
    assert Delivery.objects.filter(pk=delivery.pk).extend(timedelta(hours=1)) == 0


def test_a_long_backlog_is_worked_off_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.redelivery.CHUNK", 2)
    sizes: list[int] = []

    def ask(overdue: list[Overdue], *, timeout_s: float) -> Held:
        sizes.append(len(overdue))
        return Held(there={overdue[0].delivery_id})

    for _ in range(5):
        publish("flaky.one")
    relay_all()
    pass_the_time()
    Housekeeping(database="default", ask=ask).redeliver()
    assert sizes == [2, 2, 1]
    assert Delivery.objects.unconfirmed().count() == 3
    assert Delivery.objects.pending().count() == 2
