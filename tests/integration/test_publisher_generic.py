"""Any broker, one message at a time; and the detection of enqueue hooks."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq import Message, Middleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed, ConnectionFailed

from outbox.errors import BrokerUnavailable
from relay.messages.single import OutgoingMessage
from relay.publishers import PartlySent, Publisher, publisher_for
from relay.publishers.base import describe, has_enqueue_hooks
from relay.publishers.generic import MAX_UNPROVED_IN_A_ROW, GenericPublisher
from tests.support.outgoing import make_actor, make_batch, make_outgoing, malformed


@pytest.fixture
def broker() -> StubBroker:
    return StubBroker(middleware=[])


def enqueued(broker: StubBroker, queue_name: str) -> list[Message[Any]]:
    queue = broker.queues[queue_name]
    return [Message.decode(queue.get_nowait()) for _ in range(queue.qsize())]


class Failing(StubBroker):
    """A broker that fails for all deliveries but the first."""

    error: Exception
    fails = True

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        if self.fails and message.options["outbox"]["delivery"] > 1:
            raise self.error
        return super().enqueue(message, delay=delay)


def test_a_broker_without_its_own_publisher_enqueues_each_message(broker: StubBroker) -> None:
    publisher = publisher_for(broker)
    actor = make_actor(broker)
    batch = make_batch(actor, 3)
    publisher.probe()
    assert isinstance(publisher, GenericPublisher)
    assert publisher.publish(batch, timeout_s=5) == []
    publisher.close()
    assert enqueued(broker, actor.queue_name) == [one.message() for one in batch]


def refusals_of(publisher: Publisher, batch: list[OutgoingMessage]) -> list[tuple[int, str, bool]]:
    found = publisher.publish(batch, timeout_s=5)
    return [(one.outgoing.delivery_id, one.error, one.is_proved) for one in found]


def test_an_error_is_a_refusal_once_the_broker_has_taken_another_message_since() -> None:
    broker = Failing(middleware=[])
    broker.error = ValueError("too large")
    publisher, actor = publisher_for(broker), make_actor(broker)
    bad = make_outgoing(actor, delivery_id=2)
    good = make_outgoing(actor, delivery_id=1)
    error = "ValueError: too large"
    assert refusals_of(publisher, [good, bad]) == [(2, error, False)]
    assert refusals_of(publisher, [bad]) == [(2, error, False)]
    assert refusals_of(publisher, [good]) == []
    assert refusals_of(publisher, [bad]) == [(2, error, True)]
    assert refusals_of(publisher, [bad]) == [(2, error, False)]


def test_a_message_that_was_taken_needs_a_new_proof() -> None:
    broker = Failing(middleware=[])
    broker.error = ValueError("too large")
    publisher, actor = publisher_for(broker), make_actor(broker)
    bad = make_outgoing(actor, delivery_id=2)
    assert not refusals_of(publisher, [bad])[0][2]
    broker.fails = False
    assert refusals_of(publisher, [bad]) == []
    broker.fails = True
    assert not refusals_of(publisher, [bad])[0][2]


def test_many_errors_in_a_row_end_the_batch_and_leave_the_others_untried() -> None:
    broker = Failing(middleware=[])
    broker.error = RuntimeError("throttled")
    batch = make_batch(make_actor(broker), MAX_UNPROVED_IN_A_ROW + 3)
    with pytest.raises(PartlySent, match="throttled") as caught:
        publisher_for(broker).publish(batch, timeout_s=5)
    assert [one.delivery_id for one in caught.value.unsent] == [MAX_UNPROVED_IN_A_ROW + 2, len(batch)]
    assert not any(refusal.is_proved for refusal in caught.value.refusals)


@pytest.mark.parametrize(
    "error", [ConnectionClosed("gone"), ConnectionFailed("gone"), ConnectionRefusedError("gone")], ids=repr
)
def test_a_lost_connection_ends_the_batch(error: Exception) -> None:
    broker = Failing(middleware=[])
    broker.error = error
    batch = make_batch(make_actor(broker), 3)
    with pytest.raises(PartlySent, match="gone") as caught:
        publisher_for(broker).publish(batch, timeout_s=5)
    assert caught.value.unsent == batch[1:]
    assert caught.value.__cause__ is error
    with pytest.raises(BrokerUnavailable, match="gone") as caught_at_first:
        publisher_for(broker).publish(batch[1:], timeout_s=5)
    assert not isinstance(caught_at_first.value, PartlySent)


def test_a_ping_that_fails_with_any_exception_means_an_outage(broker: StubBroker) -> None:
    def ping() -> None:
        raise RuntimeError("no such server")

    broker.client = SimpleNamespace(ping=ping)  # type: ignore[attr-defined]
    with pytest.raises(BrokerUnavailable, match="no such server"):
        publisher_for(broker).probe()


def test_without_time_no_message_is_enqueued(broker: StubBroker) -> None:
    actor = make_actor(broker)
    with pytest.raises(BrokerUnavailable, match="0 of 1"):
        publisher_for(broker).publish([make_outgoing(actor)], timeout_s=0)


def test_a_partly_sent_batch_reports_earlier_refusals(
    broker: StubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [malformed(actor := make_actor(broker)), *make_batch(actor, 2)]
    # The times of the start and of the check before each message; the third check is past the deadline.
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


class Other(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None: ...


@pytest.mark.parametrize(("middleware", "hooked"), [(Before, True), (After, True), (Other, False)])
def test_only_middleware_with_enqueue_hooks_counts(middleware: type[Middleware], hooked: bool) -> None:
    assert has_enqueue_hooks(StubBroker(middleware=[Other(), middleware()])) is hooked


def test_a_hook_set_on_an_instance_counts(broker: StubBroker) -> None:
    middleware = Other()
    broker.add_middleware(middleware)
    assert not has_enqueue_hooks(broker)
    middleware.before_enqueue = lambda *args: None  # type: ignore[method-assign]
    assert has_enqueue_hooks(broker)


def test_an_error_without_a_text_is_described_by_its_type() -> None:
    assert describe(TimeoutError()) == "TimeoutError()"
