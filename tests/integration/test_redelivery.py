"""An overdue delivery is redelivered only if its message is no longer in the broker."""

from __future__ import annotations

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
from dramatiq.brokers.stub import StubBroker

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from relay.dispatch import Dispatcher
from relay.maintenance import Maintenance
from relay.messages.dispatch_ids import BrokerContents, OverdueDelivery
from relay.redelivery import MAX_TIMEOUTS_EXTENDED, Redelivery
from tests.support.brokers import RabbitmqBrokers
from tests.support.data_flow import publish, relay_all
from tests.support.names import unique_name

pytestmark = pytest.mark.django_db(transaction=True)

TIMEOUT_S = 600


@pytest.fixture(autouse=True)
def confirm_timeout(settings: Any) -> None:
    settings.OUTBOX = {"CONFIRM_TIMEOUT": TIMEOUT_S}


@pytest.fixture
def redis_broker(redis_url: str) -> Iterator[RedisBroker]:
    broker = RedisBroker(url=redis_url, namespace=unique_name(), middleware=[], maintenance_chance=0)
    yield broker
    lose_all(broker)
    broker.client.connection_pool.disconnect()


@pytest.fixture
def rabbitmq_broker(rabbitmq_url: str) -> Iterator[RabbitmqBroker]:
    with closing(RabbitmqBrokers(rabbitmq_url)) as brokers:
        yield brokers.make()


@contextmanager
def handler_on(broker: Broker, **options: Any) -> Iterator[dramatiq.Actor[..., Any]]:
    """Declare a handler of `shop.*` on a broker of the test."""
    name = unique_name()
    actor = outbox.handler("shop.*", name=name, queue_name=name, broker=broker, **options)(lambda event: None)
    try:
        yield actor
    finally:
        registry.remove(name)


def lose_all(broker: RedisBroker) -> None:
    for key in broker.client.scan_iter(f"{broker.namespace}:*"):
        broker.client.delete(key)


def lose(broker: RedisBroker, count: int) -> None:
    """Delete some of the messages in the only queue."""
    (messages,) = broker.client.keys(f"{broker.namespace}:*.msgs")
    broker.client.hdel(messages, *broker.client.hkeys(messages)[:count])


def dispatch(count: int = 1) -> list[Event]:
    """Publish events, dispatch them, and let their confirmations become overdue."""
    events = [publish("shop.paid", n) for n in range(count)]
    relay_all()
    let_become_overdue()
    return events


def let_become_overdue() -> None:
    Delivery.objects.unconfirmed().update(confirm_by=Now() - timedelta(seconds=1))


def redeliver() -> dict[str, int]:
    """Run the relay's redelivery, and return the number of deliveries by state."""
    with closing(Dispatcher(database="default")) as dispatcher:
        Maintenance(database="default", ask=dispatcher.still_queued).redeliver()
    states = list(Delivery.objects.values_list("state", flat=True))
    return {state: states.count(state) for state in set(states)}


# ---------------------------------------------------------------- Redis


@pytest.mark.redis
def test_a_message_in_redis_is_not_redelivered(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch(3)
        assert redeliver() == {"dispatched": 3}
    assert not Delivery.objects.overdue().exists()


@pytest.mark.redis
def test_a_message_that_redis_lost_is_redelivered(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch(3)
        lose(redis_broker, 2)
        assert redeliver() == {"pending": 2, "dispatched": 1}


@pytest.mark.redis
def test_each_dispatch_is_recognized_separately(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker):
        dispatch()
        lose_all(redis_broker)
        assert redeliver() == {"pending": 1}
        relay_all()
        let_become_overdue()
        assert redeliver() == {"dispatched": 1}
        lose_all(redis_broker)
        let_become_overdue()
        assert redeliver() == {"pending": 1}


@pytest.mark.redis
def test_the_deliveries_of_a_batch_wait_for_their_message_together(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker, batch_size=3, batch_wait=timedelta(hours=1)) as actor:
        dispatch(3)
        assert redis_broker.client.llen(f"{redis_broker.namespace}:{actor.queue_name}") == 1
        assert redeliver() == {"dispatched": 3}
        lose_all(redis_broker)
        let_become_overdue()
        assert redeliver() == {"pending": 3}


@pytest.mark.redis
def test_a_message_that_a_worker_has_is_redelivered_only_after_its_acknowledgement(
    redis_broker: RedisBroker,
) -> None:
    with handler_on(redis_broker) as actor:
        dispatch()
        consumer: Any = redis_broker.consume(actor.queue_name)
        message = next(consumer)
        assert redeliver() == {"dispatched": 1}
        consumer.ack(message)
        let_become_overdue()
        assert redeliver() == {"pending": 1}


@pytest.mark.redis
def test_the_check_returns_the_messages_of_a_dead_worker_to_their_queue(redis_broker: RedisBroker) -> None:
    with handler_on(redis_broker) as actor:
        dispatch()
        next(redis_broker.consume(actor.queue_name))
        redis_broker.client.zadd(f"{redis_broker.namespace}:__heartbeats__", {redis_broker.broker_id: 1})
        redis_broker.broker_id = "another"
        assert redeliver() == {"dispatched": 1}
        assert redis_broker.client.llen(f"{redis_broker.namespace}:{actor.queue_name}") == 1


# ---------------------------------------------------------------- RabbitMQ


@pytest.mark.rabbitmq
def test_nothing_is_redelivered_to_a_deep_queue(
    rabbitmq_broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishers.rabbitmq.DEEP_QUEUE", 2)
    with handler_on(rabbitmq_broker) as actor:
        dispatch(3)
        assert redeliver() == {"dispatched": 3}
        assert not Delivery.objects.overdue().exists()
        rabbitmq_broker.flush(actor.queue_name)
        let_become_overdue()
        assert redeliver() == {"pending": 3}


@pytest.mark.rabbitmq
def test_a_queue_that_rabbitmq_lost_has_no_messages(
    rabbitmq_broker: RabbitmqBroker, rabbitmq_url: str
) -> None:
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
def test_nothing_is_redelivered_to_an_unreachable_broker(make_broker: Any) -> None:
    with handler_on(make_broker()) as actor:
        event = publish("shop.paid")
        assert (
            Delivery.objects.filter(event=event, handler=actor.actor_name).mark_dispatched(timedelta()) == 1
        )
        let_become_overdue()
        assert redeliver() == {"dispatched": 1}
    left = Delivery.objects.filter(confirm_by__gt=Now(), confirm_by__lt=Now() + timedelta(seconds=31))
    assert left.get().redeliveries == 0


def test_the_answers_of_a_broker_extend_the_wait_only_for_a_limited_time() -> None:
    asked: list[int] = []

    def ask(overdue: Any, *, timeout_s: float) -> BrokerContents:
        asked.extend(row.delivery_id for row in overdue)
        return BrokerContents(present={row.delivery_id for row in overdue})

    events = [publish("flaky.one"), publish("flaky.other")]
    relay_all()
    let_become_overdue()
    old = Delivery.objects.filter(event=events[0])
    old.update(dispatched_at=Now() - MAX_TIMEOUTS_EXTENDED * timedelta(seconds=TIMEOUT_S + 1))
    Maintenance(database="default", ask=ask).redeliver()
    assert [old.get().state, events[1].deliveries.get().state] == ["pending", "dispatched"]
    assert asked == [events[1].deliveries.get().pk]


@pytest.mark.postgres
def test_rows_that_a_transactional_handler_has_locked_are_skipped() -> None:
    event = publish("flaky.one")
    relay_all()
    let_become_overdue()
    delivery = event.deliveries.get()
    other = connections["default"].copy()
    with closing(other), other.cursor() as cursor, transaction.atomic():
        other.set_autocommit(False)
        cursor.execute("SELECT FROM outbox_delivery WHERE id = %s FOR UPDATE", [delivery.pk])
        assert Delivery.objects.filter(pk=delivery.pk).extend_confirm_by(timedelta(hours=1)) == 0
        assert Delivery.objects.redeliver_overdue(limit=1, max_redeliveries=1) == ([], [])
        other.rollback()
    assert Delivery.objects.filter(pk=delivery.pk).extend_confirm_by(timedelta(hours=1)) == 1
    assert Delivery.objects.filter(pk=delivery.pk).extend_confirm_by(timedelta(hours=1)) == 0


def test_a_long_backlog_is_redelivered_in_chunks() -> None:
    sizes: list[int] = []

    def ask(overdue: list[OverdueDelivery], *, timeout_s: float) -> BrokerContents:
        sizes.append(len(overdue))
        return BrokerContents(present={overdue[0].delivery_id})

    for _ in range(5):
        publish("flaky.one")
    relay_all()
    let_become_overdue()
    Redelivery(database="default", ask=ask, chunk=2).run()
    assert sizes == [2, 2, 1]
    assert Delivery.objects.unconfirmed().count() == 3
    assert Delivery.objects.pending().count() == 2


# ---------------------------------------------------------------- rows that a relay may not redeliver


def test_a_relay_redelivers_no_delivery_of_a_handler_that_its_code_lacks() -> None:
    with handler_on(StubBroker(middleware=[])):
        dispatch(3)
    # The handler is no longer declared, as in a relay with older code.
    assert redeliver() == {"dispatched": 3}


def test_a_relay_of_some_queues_redelivers_only_deliveries_to_them() -> None:
    with handler_on(StubBroker(middleware=[])) as mine, handler_on(StubBroker(middleware=[])) as other:
        dispatch(2)
        Maintenance(database="default", queues=(mine.queue_name,)).redeliver()
        states = set(Delivery.objects.values_list("handler", "state"))
    assert states == {(mine.actor_name, "pending"), (other.actor_name, "dispatched")}


@pytest.mark.postgres
def test_locked_overdue_deliveries_do_not_hide_lost_ones() -> None:
    with handler_on(StubBroker(middleware=[])):
        locked, lost = [[event.pk for event in dispatch(3)] for _ in range(2)]
        # The locked rows are the oldest, and fill the first chunk.
        Delivery.objects.filter(event_id__in=locked).update(confirm_by=Now() - timedelta(hours=1))
        other = connections["default"].copy()
        try:
            with other.cursor() as cursor:
                other.set_autocommit(False)
                cursor.execute("SELECT id FROM outbox_delivery WHERE event_id = ANY(%s) FOR UPDATE", [locked])
                assert Redelivery(database="default", ask=None, chunk=3).run() == 3
        finally:
            other.close()
    pending = Delivery.objects.pending().values_list("event_id", flat=True)
    assert set(pending) == set(lost)
