"""A relay that fills the broker in its own memory: after the commit, within the room, with its lock."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from django.db import transaction
from dramatiq import Message, Middleware

import outbox
from outbox.brokers import EmbeddedBroker
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.registry import registry
from relay import capacity
from relay.capacity import Capacity
from relay.publishers import publisher_for
from relay.publishers.embedded import EmbeddedPublisher
from relay.relay_options import RelayOptions
from tests.support.data_flow import publish, relaying
from tests.support.names import unique_name
from tests.support.outgoing import make_actor, make_outgoing

pytestmark = pytest.mark.django_db(transaction=True)

OWN = 7
THREADS = 2


@pytest.fixture
def broker() -> EmbeddedBroker:
    """Return a broker whose messages nobody runs."""
    broker = EmbeddedBroker(middleware=[])
    broker.open(THREADS)
    return broker


class Worker:
    """The worker of a relay's process, as far as the relay sees it."""

    def __init__(self, broker: EmbeddedBroker, *, has_lock: bool = True) -> None:
        self.broker = broker
        lock = SimpleNamespace(number=OWN, process_id=uuid4(), wait=lambda _timeout_s: has_lock)
        self.owners = {"default": lock}

    def in_memory(self) -> set[int]:
        return self.broker.deliveries()


@pytest.fixture
def handlers(broker: EmbeddedBroker) -> Iterator[None]:
    """Declare a handler with ordering keys and one without."""
    names = [unique_name(), unique_name()]
    for name, ordered in zip(names, (True, False), strict=True):
        topic = "embedded.ordered" if ordered else "embedded.plain"
        outbox.handler(topic, name=name, queue_name=name, broker=broker, ordered=ordered)(lambda event: None)
    yield
    for name in names:
        registry.remove(name)


# ---------------------------------------------------------------- the relay


def test_a_round_claims_no_more_than_the_threads_can_take(broker: EmbeddedBroker, handlers: None) -> None:
    for number in range(10):
        publish("embedded.plain")
        publish("embedded.ordered", key=f"k{number}")
    with relaying(drain=False, once=True, worker=Worker(broker)) as relay:
        relay.run()
    dispatched = Delivery.objects.unconfirmed()
    assert dispatched.count() == len(broker.deliveries()) == 2 * THREADS
    # Neither kind waits for the backlog of the other.
    assert dispatched.exclude(key="").count() == THREADS
    assert set(dispatched.values_list("owner", flat=True)) == {OWN}


def test_without_its_lock_a_process_claims_nothing(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "LOCK_SLICES", 3)
    worker: Any = Worker(broker, has_lock=False)
    room = Capacity(RelayOptions(database="default", worker=worker))
    assert [room.wait(), room.wait()] == [0, 0]
    with pytest.raises(BrokerUnavailable, match="does not hold the lock"):
        room.wait()


def test_a_relay_without_a_worker_has_no_limit() -> None:
    assert Capacity(RelayOptions(database="default")).wait() == capacity.UNLIMITED


# ---------------------------------------------------------------- the publisher


@pytest.fixture
def publisher(broker: EmbeddedBroker) -> EmbeddedPublisher:
    found = publisher_for(broker)
    assert isinstance(found, EmbeddedPublisher)
    return found


@pytest.fixture
def actor(broker: EmbeddedBroker) -> dramatiq.Actor[..., Any]:
    return make_actor(broker)


def test_messages_come_after_the_commit_of_their_claim(
    broker: EmbeddedBroker, publisher: EmbeddedPublisher, actor: Any
) -> None:
    with transaction.atomic():
        assert publisher.publish([make_outgoing(actor, delivery_id=1)], timeout_s=5) == []
        assert broker.deliveries() == set()
    assert broker.deliveries() == {1}


def test_messages_of_a_claim_that_is_rolled_back_never_come(
    broker: EmbeddedBroker, publisher: EmbeddedPublisher, actor: Any
) -> None:
    with transaction.atomic():
        publisher.publish([make_outgoing(actor, delivery_id=1)], timeout_s=5)
        transaction.set_rollback(True)
    assert broker.deliveries() == set()


def test_a_malformed_row_is_refused_alone(
    broker: EmbeddedBroker, publisher: EmbeddedPublisher, actor: Any
) -> None:
    rows = [make_outgoing(actor, delivery_id=1, payload="{"), make_outgoing(actor, delivery_id=2)]
    with transaction.atomic():
        (refusal,) = publisher.publish(rows, timeout_s=5)
    assert refusal.outgoing.delivery_id == 1
    assert broker.deliveries() == {2}


def test_the_hooks_of_an_enqueue_run(
    broker: EmbeddedBroker, publisher: EmbeddedPublisher, actor: Any
) -> None:
    seen: list[str] = []

    class Hooks(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            seen.append("before")

        def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            seen.append("after")

    broker.add_middleware(Hooks())
    with transaction.atomic():
        publisher.publish([make_outgoing(actor)], timeout_s=5)
        assert seen == ["before"]
    assert seen == ["before", "after"]


def test_a_relay_without_a_worker_is_told_so(
    actor: Any, publisher: EmbeddedPublisher, broker: EmbeddedBroker
) -> None:
    broker.close()
    with pytest.raises(BrokerUnavailable, match="run_relay --with-worker"):
        publisher.probe()


def test_a_delivery_in_memory_is_still_queued(
    broker: EmbeddedBroker, publisher: EmbeddedPublisher, actor: Any
) -> None:
    with transaction.atomic():
        publisher.publish([make_outgoing(actor, delivery_id=3)], timeout_s=5)
    assert publisher.still_queued([], timeout_s=5) == {3}
