"""The broker in the memory of a process: what it takes, refuses, and gives back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.errors import ActorNotFound, QueueNotFound

from outbox.brokers import EmbeddedBroker
from outbox.brokers.embedded import EmbeddedMessage
from outbox.errors import EmbeddedBrokerError

THREADS = 2


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def broker(clock: SimpleNamespace) -> EmbeddedBroker:
    """Return a broker with one queue, whose messages a worker of two threads runs."""
    broker = EmbeddedBroker(middleware=[], clock=lambda: clock.now)
    broker.declare_queue("mails")
    broker.open(THREADS)
    return broker


def message(delivery: int = 1) -> EmbeddedMessage:
    sent: Message[Any] = Message("mails", "mail", (), {}, {})
    return EmbeddedMessage(sent, database="default", deliveries=[delivery])


def consumer(broker: EmbeddedBroker) -> dramatiq.Consumer:
    return broker.consume("mails", timeout=0)


def test_a_message_counts_until_it_is_acknowledged(broker: EmbeddedBroker) -> None:
    broker.add([message(1), message(2)])
    reading = consumer(broker)
    first = next(reading)
    assert broker.deliveries() == {1, 2}
    assert first is not None
    reading.ack(first)
    assert broker.deliveries() == {2}
    second = next(reading)
    assert second is not None
    reading.nack(second)
    assert broker.deliveries() == set()
    assert broker.wait_until_empty(0)
    assert next(reading) is None


def test_there_is_room_for_two_messages_a_thread(broker: EmbeddedBroker, clock: SimpleNamespace) -> None:
    assert broker.wait_for_room(0) == 2 * THREADS
    broker.add([message(n) for n in range(2 * THREADS)])
    assert broker.wait_for_room(0) == 0
    reading = consumer(broker)
    clock.now += 1
    reading.ack(next(reading))
    assert broker.wait_for_room(0) == 1


@pytest.mark.parametrize(("took_s", "room"), [(0.000_001, 500), (0.001, 200), (0.005, 64), (0.02, 4)])
def test_there_is_room_for_many_short_messages(
    broker: EmbeddedBroker, clock: SimpleNamespace, took_s: float, room: int
) -> None:
    reading = consumer(broker)
    broker.add([message()])
    clock.now += took_s
    reading.ack(next(reading))
    # A tenth of a second of work for both threads, within the bounds.
    assert broker.wait_for_room(0) == room


def test_messages_that_no_thread_has_begun_are_taken_back(broker: EmbeddedBroker) -> None:
    broker.add([message(n) for n in range(3)])
    reading = consumer(broker)
    running, fetched = next(reading), next(reading)
    # Dramatiq's worker returns what it has fetched when it stops.
    assert fetched is not None
    reading.requeue([fetched])
    assert {one.deliveries[0] for one in broker.take_unstarted()} == {1, 2}
    assert broker.deliveries() == {0}
    assert running is not None


def test_two_messages_of_one_delivery_are_told_apart(broker: EmbeddedBroker) -> None:
    broker.add([message(7), message(7)])
    reading = consumer(broker)
    reading.ack(next(reading))
    assert broker.deliveries() == {7}


# ---------------------------------------------------------------- messages without the outbox


def test_a_message_of_a_plain_actor_is_refused(broker: EmbeddedBroker) -> None:
    @dramatiq.actor(broker=broker, queue_name="mails")
    def mail() -> None: ...

    with pytest.raises(EmbeddedBrokerError, match="actor_class=TransactionalActor"):
        mail.send()
    with pytest.raises(EmbeddedBrokerError):
        mail.send_with_options(delay=1000)
    assert broker.wait_until_empty(0)


def test_a_message_of_an_unknown_actor_is_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(ActorNotFound):
        broker.enqueue(Message("mails", "absent", (), {}, {}))


def test_a_worker_without_a_relay_in_its_process_is_refused() -> None:
    broker = EmbeddedBroker(middleware=[])
    broker.declare_queue("mails")
    with pytest.raises(EmbeddedBrokerError, match="run_relay --with-worker"):
        broker.consume("mails")


def test_an_undeclared_queue_has_no_consumer(broker: EmbeddedBroker) -> None:
    with pytest.raises(QueueNotFound):
        broker.consume("absent")


@pytest.mark.parametrize("flush", [lambda broker: broker.flush("mails"), lambda broker: broker.flush_all()])
def test_a_flush_loses_no_message(broker: EmbeddedBroker, flush: Callable[[EmbeddedBroker], None]) -> None:
    broker.add([message()])
    flush(broker)
    assert broker.deliveries() == {1}
