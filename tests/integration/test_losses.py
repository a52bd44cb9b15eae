"""A broker without its marker has lost messages; the relay sends these again, and no others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker

import outbox
from outbox.brokers import RedisBroker as FastRedisBroker
from outbox.brokers.unwritten import unwritten_key, unwritten_queue, unwritten_queue_arguments
from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.events import DeliveryRef
from outbox.models import BrokerMarker, Delivery
from outbox.observability import telemetry
from outbox.registry import registry
from outbox.worker.unwritten_outcomes import UnwrittenOutcomes
from relay.dispatch import Dispatcher
from relay.publishers import Marker, Publisher
from relay.publishers.amqp import AmqpConnection
from relay.publishers.amqp_types import QueueRefused
from relay.publishers.redis import RedisPublisher
from relay.redelivery import Redelivery
from tests.support.brokers import RabbitmqBrokers, RedisBrokers
from tests.support.data_flow import publish, relay_all
from tests.support.names import unique_name
from tests.support.outgoing import make_outgoing
from tests.support.signals import sent

pytestmark = pytest.mark.django_db(transaction=True)


class Server:
    """A broker on one of the servers, its only handler, and the loss of its messages."""

    def __init__(self, brokers: Any, broker: Any) -> None:
        self.brokers = brokers
        self.broker = broker
        self.name = unique_name()

    @contextmanager
    def handler(self, **options: Any) -> Iterator[dramatiq.Actor[..., Any]]:
        declare = outbox.handler(
            "shop.*", name=self.name, queue_name=self.name, broker=self.broker, **options
        )
        try:
            yield declare(lambda event: None)
        finally:
            registry.remove(self.name)

    def marker(self) -> str:
        """Return the name of the marker in the broker."""
        row = BrokerMarker.objects.get()
        if isinstance(self.broker, RedisBroker):
            (key,) = self.broker.client.keys(f"{self.broker.namespace}:__outbox_marker__.*.{row.marker}")
            return str(key.decode())
        return f"outbox.marker.{row.marker}.{row.generation}"

    def lose_marker(self) -> None:
        if isinstance(self.broker, RedisBroker):
            assert self.broker.client.delete(self.marker()) == 1
        else:
            self.brokers.channel.queue_delete(self.marker())

    def lose_all(self) -> None:
        self.brokers.take(self.broker, self.name)
        self.lose_marker()

    def waiting(self) -> int:
        """Return how many messages wait in the broker."""
        if isinstance(self.broker, RedisBroker):
            return int(self.broker.client.llen(f"{self.broker.namespace}:{self.name}"))
        return int(self.broker.get_queue_message_counts(self.name)[0])


@pytest.fixture
def redis_server(redis_url: str) -> Iterator[Server]:
    with closing(RedisBrokers(redis_url)) as brokers:
        yield Server(brokers, brokers.make())


@pytest.fixture
def rabbitmq_server(rabbitmq_url: str) -> Iterator[Server]:
    with closing(RabbitmqBrokers(rabbitmq_url)) as brokers:
        yield Server(brokers, brokers.make())


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def relay() -> Iterator[Dispatcher]:
    """Return the part of a relay that knows its brokers."""
    with closing(Dispatcher(database="default")) as dispatcher:
        yield dispatcher


@pytest.fixture
def other_relay() -> Iterator[Dispatcher]:
    with closing(Dispatcher(database="default")) as dispatcher:
        yield dispatcher


@pytest.fixture(autouse=True)
def quick_checks_and_a_long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask idle brokers with each check, and redeliver nothing before a test ends the grace."""
    monkeypatch.setattr("relay.publishers.redis.PROBE_INTERVAL_S", 0)
    monkeypatch.setattr("relay.publishers.rabbitmq.PROBE_INTERVAL_S", 0)
    monkeypatch.setattr("relay.losses.GRACE", timedelta(hours=1))


def dispatch(count: int) -> None:
    """Publish events, and dispatch them."""
    for n in range(count):
        publish("shop.paid", n)
    relay_all()


def redeliver(relay: Dispatcher) -> int:
    """Record a loss, end the wait for outcomes and claims, and return how many the relay redelivers."""
    assert relay.losses.run() == 0
    end_grace(relay)
    return relay.losses.run()


def end_grace(relay: Dispatcher) -> None:
    relay.losses.grace = timedelta(hours=-1)


def states() -> dict[str, int]:
    found = list(Delivery.objects.values_list("state", flat=True))
    return {state: found.count(state) for state in set(found)}


def publisher_of(relay: Dispatcher, broker: Broker) -> Publisher:
    (found,) = [publisher for one, publisher in relay.publishers() if one is broker]
    return found


def generation() -> int:
    return BrokerMarker.objects.get().generation


# ---------------------------------------------------------------- a loss is found and repaired


def test_the_deliveries_of_lost_messages_are_redelivered(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(3)
        assert (relay.losses.run(), generation(), states()) == (0, 1, {"dispatched": 3})
        server.lose_all()
        assert redeliver(relay) == 3
        relay_all()
        assert (states(), server.waiting()) == ({"dispatched": 3}, 3)
        # The loss is repaired: nothing more is checked, by this relay or another one.
        assert relay.losses.run() == 0
    assert BrokerMarker.objects.get().repaired


def test_the_signals_of_a_loss_name_the_broker_and_the_lost_deliveries(
    server: Server, relay: Dispatcher
) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        with (
            sent(telemetry.broker_lost) as losses,
            sent(telemetry.deliveries_lost) as lost,
            sent(telemetry.delivery_redelivered) as redelivered,
        ):
            assert redeliver(relay) == 2
    broker = {"database": "default", "broker": BrokerMarker.objects.get().broker}
    assert losses == [broker]
    assert lost == [broker | {"redelivered": 2}]
    assert {one["delivery_id"] for one in redelivered} == set(Delivery.objects.values_list("pk", flat=True))
    assert all(one.keys() == set(telemetry.FIELDS["delivery_redelivered"]) for one in redelivered)


def test_a_lost_delivery_keeps_its_age(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(1)
        due_at = Delivery.objects.get().available_at
        relay.losses.run()
        server.lose_all()
        assert redeliver(relay) == 1
    assert Delivery.objects.get().due_since == due_at


def test_a_redelivery_after_a_loss_does_not_count_toward_the_limit(
    server: Server, relay: Dispatcher, settings: Any
) -> None:
    settings.OUTBOX = {"MAX_REDELIVERIES": 0}
    with server.handler():
        dispatch(1)
        relay.losses.run()
        server.lose_all()
        assert redeliver(relay) == 1
    delivery = Delivery.objects.get()
    # The message of a resend is marked as a possible duplicate.
    assert (delivery.state, delivery.redeliveries, delivery.resends) == ("pending", 0, 1)


@pytest.mark.redis
def test_a_loss_in_the_broker_with_the_faster_consumer_is_repaired(
    redis_server: Server, relay: Dispatcher
) -> None:
    redis_server.broker = redis_server.brokers.make(FastRedisBroker)
    with redis_server.handler():
        dispatch(2)
        relay.losses.run()
        redis_server.lose_all()
        assert redeliver(relay) == 2


@pytest.mark.redis
def test_the_deliveries_of_lost_batches_are_redelivered(redis_server: Server, relay: Dispatcher) -> None:
    with redis_server.handler(batch_size=3, batch_wait=timedelta(hours=1)):
        dispatch(3)
        relay.losses.run()
        redis_server.lose_all()
        assert redeliver(relay) == 3


def test_lost_deliveries_of_a_renamed_handler_are_redelivered(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
    former, server.name = server.name, unique_name()
    with server.handler(former_names=[former]):
        assert redeliver(relay) == 2


def test_a_long_backlog_is_checked_in_chunks(
    server: Server, relay: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay.losses, "_chunk", 2)
    monkeypatch.setattr("relay.losses.CHUNKS_AT_ONCE", 2)
    with server.handler():
        dispatch(7)
        relay.losses.run()
        server.lose_all()
        assert redeliver(relay) == 4
        assert relay.losses.run() == 3
        assert BrokerMarker.objects.get().repaired


def test_nothing_is_redelivered_while_outcomes_may_still_arrive(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        assert relay.losses.run() == relay.losses.run() == 0
        Delivery.objects.filter(pk=Delivery.objects.earliest("pk").pk).update(state="succeeded")
        end_grace(relay)
        assert relay.losses.run() == 1


@pytest.mark.redis
def test_a_batch_finds_a_loss_without_another_request(
    redis_server: Server, relay: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server.handler() as actor:
        dispatch(1)
        relay.losses.run()
        redis_server.lose_all()
        publisher: Any = publisher_of(relay, redis_server.broker)
        exchanges: list[Any] = []
        exchange = publisher._exchange
        monkeypatch.setattr(publisher, "_exchange", lambda sent: exchanges.append(sent) or exchange(sent))
        publisher.publish([make_outgoing(actor)], timeout_s=publisher._timeout_s)
        assert (publisher.marker.missing, len(exchanges)) == (True, 1)


# ---------------------------------------------------------------- no loss, no redelivery


def test_deliveries_that_were_dispatched_after_the_loss_are_not_redelivered(
    server: Server, relay: Dispatcher
) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        assert relay.losses.run() == 0
        dispatch(3)
        end_grace(relay)
        assert relay.losses.run() == 2
    assert states() == {"pending": 2, "dispatched": 3}


def test_the_first_start_on_a_table_with_dispatched_deliveries_redelivers_nothing(
    server: Server, relay: Dispatcher
) -> None:
    with server.handler():
        dispatch(2)
        server.lose_marker()
        BrokerMarker.objects.all().delete()
        assert redeliver(relay) == 0
    assert (states(), generation()) == ({"dispatched": 2}, 1)


@pytest.mark.redis
def test_the_eviction_of_the_marker_costs_only_a_check(redis_server: Server, relay: Dispatcher) -> None:
    with redis_server.handler():
        dispatch(2)
        relay.losses.run()
        redis_server.lose_marker()
        assert redeliver(relay) == 0
    assert (states(), generation()) == ({"dispatched": 2}, 2)
    assert BrokerMarker.objects.get().repaired


@pytest.mark.redis
def test_a_redis_server_with_an_old_snapshot_is_checked(redis_server: Server, relay: Dispatcher) -> None:
    client: Any = redis_server.broker.client
    with redis_server.handler():
        dispatch(2)
        relay.losses.run()
        # The marker was saved, and one of the messages was not; the run id is that of the server before.
        bodies = f"{redis_server.broker.namespace}:{redis_server.name}.msgs"
        client.hdel(bodies, client.hkeys(bodies)[0])
        client.set(redis_server.marker(), f"1 {'0' * 40}")
        assert redeliver(relay) == 1


@pytest.mark.redis
def test_relays_with_different_addresses_of_one_server_find_the_same_loss_once(redis_server: Server) -> None:
    broker = redis_server.broker
    renamed = copy.copy(broker)
    renamed.client = copy.copy(broker.client)
    renamed.client.connection_pool = copy.copy(broker.client.connection_pool)
    kwargs = broker.client.connection_pool.connection_kwargs
    renamed.client.connection_pool.connection_kwargs = kwargs | {"host": "127.1"}
    with closing(RedisPublisher(broker)) as one, closing(RedisPublisher(renamed)) as other:
        # One relay has found two losses before the other relay started.
        one.make_marker(Marker("same", 3))
        other.make_marker(Marker("same", 1))
        assert (one.check_marker(), other.check_marker()) == (False, False)
        keys = broker.client.keys(f"{broker.namespace}:__outbox_marker__.*")
        assert broker.client.delete(*keys) == 2
        assert (one.check_marker(), other.check_marker()) == (True, True)


@pytest.mark.rabbitmq
def test_a_queue_whose_node_is_down_proves_no_loss(
    rabbitmq_server: Server, relay: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rabbitmq_server.handler():
        dispatch(1)
        relay.losses.run()
        server_text = "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is down"

        def refuse(*_args: Any, **_options: Any) -> Any:
            raise QueueRefused(server_text, code=404)

        monkeypatch.setattr(AmqpConnection, "_declare", refuse)
        assert redeliver(relay) == 0
    assert generation() == 1


# ---------------------------------------------------------------- several relays, and relays that are killed


def test_several_relays_redeliver_each_lost_delivery_once(
    server: Server, relay: Dispatcher, other_relay: Dispatcher
) -> None:
    with server.handler():
        dispatch(3)
        assert relay.losses.run() == other_relay.losses.run() == 0
        server.lose_all()
        assert relay.losses.run() == other_relay.losses.run() == 0
        end_grace(relay)
        assert relay.losses.run() == 3
        relay_all()
        # The other relay checks as well, as it may know other handlers.
        end_grace(other_relay)
        assert other_relay.losses.run() == 0
        assert server.waiting() == 3
    assert set(Delivery.objects.values_list("resends", flat=True)) == {1}
    assert generation() == 2


def test_a_relay_that_is_killed_after_it_found_a_loss_leaves_the_check_to_the_next(
    server: Server, relay: Dispatcher, other_relay: Dispatcher
) -> None:
    with server.handler():
        dispatch(3)
        relay.losses.run()
        server.lose_all()
        assert relay.losses.run() == 0
        assert redeliver(other_relay) == 3


def test_a_relay_that_is_killed_before_its_commit_leaves_the_loss_to_the_next(
    server: Server, relay: Dispatcher, other_relay: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.handler():
        dispatch(3)
        relay.losses.run()
        server.lose_all()
        run_without_commit(relay, monkeypatch)
        assert generation() == 1
        assert redeliver(other_relay) == 3


def test_a_relay_whose_commit_failed_finds_the_loss_again(
    server: Server, relay: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.handler():
        dispatch(3)
        relay.losses.run()
        server.lose_all()
        run_without_commit(relay, monkeypatch)
        assert redeliver(relay) == 3


def run_without_commit(relay: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commit of a loss fail, after the broker has got its next marker."""

    def refuse() -> None:
        raise OperationalError("no commit")

    with monkeypatch.context() as patch:
        patch.setattr(connections["default"], "_commit", refuse)
        with pytest.raises(OperationalError, match="no commit"):
            relay.losses.run()


def test_a_claim_that_commits_after_the_first_check_is_checked_as_well(
    server: Server, relay: Dispatcher, settings: Any
) -> None:
    settings.OUTBOX = {"DISPATCH_TIMEOUT": 3600}
    with server.handler():
        dispatch(2)
        relay.losses.run()
        late = Delivery.objects.earliest("pk")
        Delivery.objects.filter(pk=late.pk).update(state="pending")
        server.lose_all()
        assert relay.losses.run() == 0
        # The grace is over, and a claim that began before the loss may still commit.
        relay.losses.grace = timedelta(seconds=-1)
        assert relay.losses.run() == 1
        Delivery.objects.filter(pk=late.pk).update(state="dispatched")
        assert not BrokerMarker.objects.get().repaired
        relay.losses.grace = timedelta(hours=-3)
        assert relay.losses.run() == 1
        assert BrokerMarker.objects.get().repaired


def test_a_second_loss_during_the_check_is_found(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        assert relay.losses.run() == 0
        dispatch(1)
        server.lose_all()
        assert redeliver(relay) == 3
    assert generation() == 3


@pytest.mark.redis
def test_a_relay_that_dispatched_to_a_replaced_server_checks_again(
    redis_server: Server, relay: Dispatcher, other_relay: Dispatcher
) -> None:
    with redis_server.handler():
        dispatch(1)
        assert relay.losses.run() == other_relay.losses.run() == 0
        redis_server.lose_all()
        assert redeliver(relay) == 1
        assert BrokerMarker.objects.get().repaired
        # The other relay was still connected to the server before, so its messages are not in this one.
        relay_all()
        redis_server.brokers.take(redis_server.broker, redis_server.name)
        assert redeliver(other_relay) == 1


@pytest.mark.postgres
def test_rows_that_are_locked_are_checked_later(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        other: Any = connections["default"].copy()
        try:
            other.set_autocommit(False)
            assert relay.losses.run() == 0
            # A claim may still commit.
            relay.losses.grace = timedelta(seconds=-1)
            with other.cursor() as cursor:
                cursor.execute("SELECT FROM outbox_delivery ORDER BY id LIMIT 1 FOR UPDATE")
                assert relay.losses.run() == 1
        finally:
            other.close()
        assert relay.losses.run() == 1


def test_a_deleted_row_of_a_marker_is_written_again(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(2)
        relay.losses.run()
        server.lose_all()
        BrokerMarker.objects.all().delete()
        assert relay.losses.run() == 0
        assert redeliver(relay) == 2


@pytest.mark.rabbitmq
def test_a_broker_that_refuses_a_marker_gets_its_messages(
    rabbitmq_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with rabbitmq_server.handler():
        dispatch(1)
        marker = rabbitmq_server.marker()
        rabbitmq_server.lose_marker()
        BrokerMarker.objects.update(generation=0)
        # A queue of that name with other arguments.
        rabbitmq_server.brokers.channel.queue_declare(marker, durable=True, arguments={"x-expires": 60_000})
        dispatch(1)
        assert rabbitmq_server.waiting() == 2
        rabbitmq_server.brokers.channel.queue_delete(marker)
    assert [one.message for one in caplog.records if "no marker can be made" in one.message]


# ---------------------------------------------------------------- workers without a database


@pytest.mark.redis
def test_a_delivery_whose_outcome_a_worker_cannot_write_waits(
    redis_server: Server, relay: Dispatcher
) -> None:
    with redis_server.handler():
        dispatch(3)
        relay.losses.run()
        redis_server.lose_all()
        waits = Delivery.objects.earliest("pk")
        key = unwritten_key(redis_server.broker.namespace)
        redis_server.broker.client.zadd(key, {waits.pk: 1})
        assert redeliver(relay) == 2
        assert not BrokerMarker.objects.get().repaired
        waits.refresh_from_db()
        assert (waits.state, waits.redeliveries) == ("dispatched", 0)
        # The worker has died, and its announcement is over.
        redis_server.broker.client.delete(key)
        assert relay.losses.run() == 1
        assert BrokerMarker.objects.get().repaired


@pytest.mark.rabbitmq
def test_all_deliveries_wait_while_a_worker_on_rabbitmq_cannot_write_outcomes(
    rabbitmq_server: Server, relay: Dispatcher
) -> None:
    channel = rabbitmq_server.brokers.channel
    with rabbitmq_server.handler():
        dispatch(2)
        relay.losses.run()
        rabbitmq_server.lose_all()
        queue = unwritten_queue(rabbitmq_server.name)
        channel.queue_declare(queue, durable=True, arguments=unwritten_queue_arguments())
        channel.basic_publish("", queue, b"")
        assert redeliver(relay) == 0
        assert states() == {"dispatched": 2}
        channel.queue_purge(queue)
        assert relay.losses.run() == 2


def test_a_worker_announces_an_outcome_that_it_cannot_write(server: Server, relay: Dispatcher) -> None:
    with server.handler():
        dispatch(1)
        relay.losses.run()
        delivery = Delivery.objects.get()
        server.lose_all()
        unwritten = UnwrittenOutcomes(server.broker, running=set)
        with transaction.atomic():
            # The lock of another transaction has the effect of a database that is away.
            Delivery.objects.select_for_update().get(pk=delivery.pk)
            confirmations.add(outcome(delivery))
            unwritten.look()
            unwritten.look()
        assert relay_has_outcomes(relay, server.broker)
        assert redeliver(relay) == 0


def outcome(delivery: Delivery) -> Outcome:
    ref = DeliveryRef(delivery.pk, str(delivery.event_id))
    return Outcome(ref, "default", delivery.handler, "succeeded", "", 0.0)


def relay_has_outcomes(relay: Dispatcher, broker: Broker) -> bool:
    return publisher_of(relay, broker).workers_have_outcomes()


@pytest.mark.redis
def test_a_worker_announces_a_long_run_of_a_message_that_redis_has_lost(
    redis_server: Server, relay: Dispatcher
) -> None:
    with redis_server.handler():
        dispatch(2)
        relay.losses.run()
        runs = Delivery.objects.earliest("pk")
        redis_server.lose_all()
        running = UnwrittenOutcomes(redis_server.broker, running=lambda: {runs.pk})
        running.look()
        assert not relay_has_outcomes(relay, redis_server.broker)
        running.look()
        assert relay_has_outcomes(relay, redis_server.broker)
        assert redeliver(relay) == 1
    assert Delivery.objects.get(pk=runs.pk).state == "dispatched"


@pytest.mark.redis
def test_an_announcement_that_is_not_repeated_ends(redis_server: Server) -> None:
    key, client = unwritten_key(redis_server.broker.namespace), redis_server.broker.client
    client.zadd(key, {"1": 0})
    announcing = UnwrittenOutcomes(redis_server.broker, running=lambda: {2, 3})
    announcing.look()
    announcing.look()
    # Another worker goes on, and removes the old announcement; the rest ends with the key.
    assert set(client.zrange(key, 0, -1)) == {b"2", b"3"}
    assert 0 < client.ttl(key) <= 30


@pytest.mark.rabbitmq
def test_a_queue_without_room_for_announcements_is_redelivered_nevertheless(
    rabbitmq_server: Server, relay: Dispatcher
) -> None:
    channel = rabbitmq_server.brokers.channel
    with rabbitmq_server.handler():
        dispatch(1)
        relay.losses.run()
        rabbitmq_server.lose_all()
        # A queue of that name with other arguments.
        channel.queue_declare(unwritten_queue(rabbitmq_server.name), durable=True)
        assert redeliver(relay) == 1


@pytest.mark.redis
def test_an_overdue_delivery_waits_for_an_outcome_that_a_worker_announces(
    redis_server: Server, relay: Dispatcher
) -> None:
    with redis_server.handler():
        dispatch(2)
        redis_server.brokers.take(redis_server.broker, redis_server.name)
        waits = Delivery.objects.earliest("pk")
        redis_server.broker.client.zadd(unwritten_key(redis_server.broker.namespace), {waits.pk: 1})
        Delivery.objects.update(confirm_by=Now() - timedelta(seconds=1))
        assert redelivered_overdue(relay) == 1
    assert Delivery.objects.get(pk=waits.pk).state == "dispatched"


def redelivered_overdue(relay: Dispatcher) -> int:
    return Redelivery(database="default", ask=relay.still_queued).run()
