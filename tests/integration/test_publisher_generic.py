"""Publish through any broker, one message at a time, and the hooks that all publishers run."""

from __future__ import annotations

import time
from typing import Any

import pytest
from dramatiq import Message, Middleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.middleware import MiddlewareError

from outbox.errors import BrokerUnavailable
from relay.publishers import PartlySent, publisher_for
from relay.publishers.base import describe, has_enqueue_hooks
from relay.publishers.generic import GenericPublisher
from tests.outgoing import make_actor, make_batch, make_outgoing, malformed


@pytest.fixture
def broker() -> StubBroker:
    return StubBroker(middleware=[])


def enqueued(broker: StubBroker, queue_name: str) -> list[Message[Any]]:
    queue = broker.queues[queue_name]
    return [Message.decode(queue.get_nowait()) for _ in range(queue.qsize())]


class Failing(StubBroker):
    """A broker that fails from the second message on."""

    error: Exception

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        if message.options["outbox"]["delivery"] > 1:
            raise self.error
        return super().enqueue(message, delay=delay)


def test_a_broker_without_a_publisher_of_its_own_enqueues_each_message(broker: StubBroker) -> None:
    publisher = publisher_for(broker)
    actor = make_actor(broker)
    batch = make_batch(actor, 3)
    publisher.probe()
    assert isinstance(publisher, GenericPublisher)
    assert publisher.publish(batch, timeout_s=5) == []
    publisher.close()
    assert enqueued(broker, actor.queue_name) == [one.message() for one in batch]


def test_a_malformed_message_does_not_keep_the_others(broker: StubBroker) -> None:
    actor = make_actor(broker)
    bad = malformed(actor)
    (refusal,) = publisher_for(broker).publish([make_outgoing(actor), bad, make_outgoing(actor)], timeout_s=5)
    assert refusal.outgoing is bad
    assert "payload" in refusal.error
    assert len(enqueued(broker, actor.queue_name)) == 2


def test_what_the_broker_says_against_one_message_refuses_that_one() -> None:
    broker = Failing(middleware=[])
    broker.error = ValueError("too large")
    refusals = publisher_for(broker).publish(make_batch(make_actor(broker), 3), timeout_s=5)
    assert [(r.outgoing.delivery_id, r.error) for r in refusals] == [
        (2, "ValueError: too large"),
        (3, "ValueError: too large"),
    ]


@pytest.mark.parametrize(
    "error", [ConnectionClosed("gone"), ConnectionFailed("gone"), ConnectionRefusedError("gone")], ids=repr
)
def test_a_lost_connection_concerns_the_whole_batch(error: Exception) -> None:
    broker = Failing(middleware=[])
    broker.error = error
    with pytest.raises(BrokerUnavailable, match="gone") as caught:
        publisher_for(broker).publish(make_batch(make_actor(broker), 3), timeout_s=5)
    assert caught.value.__cause__ is error


def test_a_slow_broker_is_not_given_more_than_its_time(broker: StubBroker) -> None:
    actor = make_actor(broker)
    with pytest.raises(BrokerUnavailable, match="0 of 1"):
        publisher_for(broker).publish([make_outgoing(actor)], timeout_s=0)


def test_what_was_refused_before_the_time_ran_out_is_told(
    broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [malformed(actor := make_actor(broker)), *make_batch(actor, 2)]
    # The start, a look before each message, and with the third one the time is over.
    monkeypatch.setattr(time, "monotonic", iter([0, 1, 2, 99]).__next__)
    with pytest.raises(PartlySent, match="took 1 of 3") as caught:
        GenericPublisher(broker).publish(batch, timeout_s=10)
    assert caught.value.unsent == batch[2:]
    assert [refusal.outgoing for refusal in caught.value.refusals] == batch[:1]
    assert len(enqueued(broker, actor.queue_name)) == 1


# ---------------------------------------------------------------- hooks


class Before(Middleware):
    def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None: ...


class After(Middleware):
    def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None: ...


class Ignoring(Before):
    ignores_relay = True


class Other(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None: ...


@pytest.mark.parametrize(
    ("middleware", "hooked"), [(Before, True), (After, True), (Ignoring, False), (Other, False)]
)
def test_only_middleware_that_looks_at_enqueued_messages_counts(
    middleware: type[Middleware], hooked: bool
) -> None:
    assert has_enqueue_hooks(StubBroker(middleware=[Other(), middleware()])) is hooked


def test_a_hook_set_on_an_instance_counts(broker: StubBroker) -> None:
    middleware = Other()
    broker.add_middleware(middleware)
    assert not has_enqueue_hooks(broker)
    middleware.before_enqueue = lambda *args: None  # type: ignore[method-assign]
    assert has_enqueue_hooks(broker)


def test_middleware_can_refuse_a_message() -> None:
    class Picky(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            if message.options["outbox"]["delivery"] == 2:
                raise MiddlewareError("not this one")

    broker = StubBroker(middleware=[Picky()])
    (refusal,) = publisher_for(broker).publish(make_batch(make_actor(broker), 3), timeout_s=5)
    assert (refusal.outgoing.delivery_id, refusal.error) == (2, "MiddlewareError: not this one")


def test_an_error_without_a_text_is_described_by_its_type() -> None:
    assert describe(TimeoutError()) == "TimeoutError()"
