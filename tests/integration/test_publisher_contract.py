"""The behaviour that all publishers share, on each broker: in bulk, and one message at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, Middleware, Worker
from dramatiq.middleware import MiddlewareError

from outbox.errors import BrokerUnavailable
from relay.messages.single import OutgoingMessage
from relay.publishers import Publisher, publisher_for
from relay.publishers.generic import GenericPublisher
from tests.support.brokers import Brokers, can_probe, delivery_ids, publishing
from tests.support.names import unique_name
from tests.support.outgoing import make_actor, make_batch, make_outgoing, malformed
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

TIMEOUT_S = 0.5
# A publisher may take this much longer than its timeout.
MARGIN_S = 0.5


@pytest.fixture(params=["in_bulk", "one_by_one"])
def broker(brokers: Brokers, request: pytest.FixtureRequest) -> Any:
    """Make a broker that the relay sends to in bulk, and one that it sends to one message at a time."""
    return brokers.make(brokers.broker_class if request.param == "in_bulk" else brokers.one_by_one_class)


@pytest.fixture
def publisher(brokers: Brokers, broker: Any) -> Iterator[Publisher]:
    with publishing(broker) as publisher:
        publisher.probe()
        yield publisher


@pytest.fixture
def bulk_broker(brokers: Brokers) -> Any:
    return brokers.make()


# ---------------------------------------------------------------- the publisher of a broker


def test_a_broker_of_dramatiq_gets_its_bulk_publisher(brokers: Brokers) -> None:
    assert isinstance(publisher_for(brokers.make()), brokers.publisher_class)


def test_a_subclass_with_the_enqueue_of_its_base_gets_the_bulk_publisher(brokers: Brokers) -> None:
    subclass = type("Subclass", (brokers.broker_class,), {})
    assert isinstance(publisher_for(brokers.make(subclass)), brokers.publisher_class)


def test_a_subclass_with_its_own_enqueue_gets_the_generic_publisher(brokers: Brokers) -> None:
    assert isinstance(publisher_for(brokers.make(brokers.one_by_one_class)), GenericPublisher)


# ---------------------------------------------------------------- messages


def test_a_batch_keeps_its_order(brokers: Brokers, broker: Any, publisher: Publisher) -> None:
    actor = make_actor(broker)
    assert publisher.publish(make_batch(actor, 500), timeout_s=20) == []
    assert publisher.publish(make_batch(actor, 300), timeout_s=20) == []
    assert delivery_ids(brokers.take(broker, actor.queue_name)) == [*range(1, 501), *range(1, 301)]


def test_a_worker_runs_published_messages(broker: Any, publisher: Publisher) -> None:
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
        broker.join(queue, timeout=5000)
    finally:
        worker.stop()
    assert sorted(seen, key=repr) == ["caf\u00e9", ((1,), {"b": 2})]


# ---------------------------------------------------------------- refusals


def test_a_malformed_message_is_refused_and_the_others_are_sent(
    brokers: Brokers, broker: Any, publisher: Publisher
) -> None:
    actor = make_actor(broker)
    bad = malformed(actor, delivery_id=9)
    (refusal,) = publisher.publish([*make_batch(actor, 2), bad, make_outgoing(actor)], timeout_s=5)
    assert refusal.outgoing is bad
    assert "ValueError: payload" in refusal.error
    assert delivery_ids(brokers.take(broker, actor.queue_name)) == [1, 2, 17]


def test_a_batch_of_malformed_messages_is_refused(broker: Any, publisher: Publisher) -> None:
    batch = [malformed(make_actor(broker))]
    assert [refusal.outgoing for refusal in publisher.publish(batch, timeout_s=5)] == batch


def test_a_middleware_can_refuse_a_message(brokers: Brokers, broker: Any, publisher: Publisher) -> None:
    class Picky(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            if message.options["outbox"]["delivery"] == 2:
                raise MiddlewareError("not this one")

    broker.add_middleware(Picky())
    actor = make_actor(broker)
    (refusal,) = publisher.publish(make_batch(actor, 3), timeout_s=5)
    assert (refusal.outgoing.delivery_id, refusal.error) == (2, "MiddlewareError: not this one")
    assert delivery_ids(brokers.take(broker, actor.queue_name)) == [1, 3]


# ---------------------------------------------------------------- hooks


class Recorder(Middleware):
    """Record each message, and add an option to it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
        assert delay is None
        self.seen.append(("before", message.options["outbox"]["delivery"]))
        message.options["trace"] = "abc"

    def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
        assert message.options["trace"] == "abc"
        self.seen.append(("after", message.options["outbox"]["delivery"]))


def test_hooks_run_for_each_sent_message_and_may_add_options(
    brokers: Brokers, broker: Any, publisher: Publisher
) -> None:
    recorder = Recorder()
    broker.add_middleware(recorder)
    actor = make_actor(broker)
    publisher.publish([*make_batch(actor, 2), malformed(actor)], timeout_s=5)
    if isinstance(publisher, GenericPublisher):
        assert recorder.seen == [("before", 1), ("after", 1), ("before", 2), ("after", 2)]
    else:
        assert recorder.seen == [("before", 1), ("before", 2), ("after", 1), ("after", 2)]
    messages = brokers.take(broker, actor.queue_name)
    assert [message.options["trace"] for message in messages] == ["abc", "abc"]


def test_without_enqueue_hooks_a_bulk_publisher_builds_no_message(
    bulk_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutgoingMessage, "message", lambda self: pytest.fail("built a message"))
    with publishing(bulk_broker) as publisher:
        assert publisher.publish([make_outgoing(make_actor(bulk_broker))], timeout_s=5) == []


# ---------------------------------------------------------------- faults of the server, for bulk publishers


def test_a_server_that_never_answers_ends_a_publish_in_time(brokers: Brokers, silent_port: int) -> None:
    broker = brokers.make_elsewhere(silent_port)
    started = time.monotonic()
    with publishing(broker) as publisher, pytest.raises(BrokerUnavailable):
        publisher.publish([make_outgoing(make_actor(broker))], timeout_s=TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S + MARGIN_S


def test_a_refused_connection_is_reported_at_once_and_without_the_password(
    brokers: Brokers, closed_port: int
) -> None:
    publisher = publisher_for(brokers.broker_class(url=brokers.url_with_password(closed_port), middleware=[]))
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="refused") as caught:
        publisher.probe()
    assert time.monotonic() - started < 1
    assert "hush" not in str(caught.value)


@pytest.fixture
def proxied(brokers: Brokers) -> Iterator[tuple[Any, Proxy]]:
    """Make a broker behind a proxy."""
    with brokers.proxied() as found:
        yield found


def test_a_silent_network_ends_a_publish_in_time(proxied: tuple[Any, Proxy]) -> None:
    broker, proxy = proxied
    actor = make_actor(broker)
    # Larger than the buffers of the sockets, so that the publisher cannot send either.
    batch = make_batch(actor, 200, payload=f'"{"x" * 65536}"')
    with publishing(broker) as publisher:
        assert publisher.publish([make_outgoing(actor)], timeout_s=TIMEOUT_S) == []
        proxy.freeze()
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            publisher.publish(batch, timeout_s=TIMEOUT_S)
        assert time.monotonic() - started < TIMEOUT_S + MARGIN_S
        proxy.thaw()
        publisher.probe()
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []


def test_a_probe_replaces_a_lost_connection(
    brokers: Brokers, proxied: tuple[Any, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, proxy = proxied
    monkeypatch.setattr(f"{brokers.publisher_class.__module__}.PROBE_INTERVAL_S", 0)
    actor = make_actor(broker)
    with publishing(broker) as publisher:
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
        before = proxy.accepted
        proxy.cut()
        wait_until(lambda: can_probe(publisher) and proxy.accepted == before + 1)
        assert publisher.publish([make_outgoing(actor)], timeout_s=5) == []
    assert delivery_ids(brokers.take(broker, actor.queue_name)) == [17, 17]


def test_a_probe_of_a_silent_connection_fails(
    brokers: Brokers, proxied: tuple[Any, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, proxy = proxied
    module = brokers.publisher_class.__module__
    monkeypatch.setattr(f"{module}.PROBE_INTERVAL_S", 0)
    monkeypatch.setattr(f"{module}.{brokers.probe_timeout}", TIMEOUT_S)
    with publishing(broker) as publisher:
        publisher.probe()
        publisher.probe()
        assert proxy.accepted == 1
        proxy.freeze()
        with pytest.raises(BrokerUnavailable, match=brokers.no_answer):
            publisher.probe()
