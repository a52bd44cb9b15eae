"""Deliveries of handlers that a relay or a worker does not declare."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now
from dramatiq.middleware import Retries

import outbox
from outbox.models import Delivery, Event
from outbox.operations.unknown_handlers import COUNT_LIMIT, describe_waiting
from outbox.registry import registry
from tests.support.brokers import Brokers, RedisBrokers
from tests.support.data_flow import finish, flush, publish, relay_all, relaying
from tests.support.names import unique_name
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

TOLERANCE = timedelta(seconds=25)
DELAYS_S = [30, 60, 120, 240, 480, 600, 600]


@pytest.fixture
def queue() -> str:
    return unique_name()


@pytest.fixture
def broker(brokers: Brokers, queue: str) -> Iterator[Any]:
    """Make a broker with a handler that fails once."""
    made = brokers.make(middleware=[Retries(max_retries=1, min_backoff=1, max_backoff=1)])
    runs: list[Any] = []

    @outbox.handler("unknown.it", name="unknown.handle", queue_name=queue, broker=made)
    def handle(event: Any) -> None:
        runs.append(event)
        if len(runs) == 1:
            raise ValueError("not the first time")

    yield made
    registry.remove("unknown.handle")


@contextmanager
def worker_of(broker: dramatiq.Broker) -> Iterator[None]:
    working = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    working.start()
    try:
        yield
    finally:
        working.stop()


@contextmanager
def old_worker_of(broker: dramatiq.Broker) -> Iterator[None]:
    """Run a worker whose code lacks the handler."""
    actor = broker.actors.pop("unknown.handle")
    try:
        with worker_of(broker):
            yield
    finally:
        broker.actors["unknown.handle"] = actor


def dead_letters(brokers: Any, broker: Any, queue: str) -> int:
    if isinstance(brokers, RedisBrokers):
        return int(broker.client.hlen(f"{broker.namespace}:{queue}.XQ.msgs"))
    return len(brokers.take_raw(f"{queue}.XQ"))


def due_in(event: Event) -> timedelta:
    left = ExpressionWrapper(F("available_at") - Now(), output_field=DurationField())
    found: timedelta = event.deliveries.annotate(left=left).values_list("left", flat=True).get()
    return found


def delay_after_return(event: Event) -> timedelta:
    """Make a delivery due, dispatch it, wait for its return to pending, and return its delay."""
    event.deliveries.update(available_at=Now(), error="")
    relay_all()

    def returned() -> bool:
        flush()
        return event.deliveries.filter(state="pending").exclude(error="").exists()

    wait_until(returned, what="the return to pending")
    return due_in(event)


def about(delays: list[timedelta]) -> list[int]:
    """Return the expected delays in place of those that are about as long."""
    assert len(delays) == len(DELAYS_S)
    return [
        wanted
        if timedelta() <= timedelta(seconds=wanted) - found <= TOLERANCE
        else found // timedelta(seconds=1)
        for wanted, found in zip(DELAYS_S, delays, strict=True)
    ]


def test_a_worker_without_the_handler_returns_a_delivery_with_growing_delays_and_no_dead_letter(
    brokers: Brokers, broker: dramatiq.Broker, queue: str
) -> None:
    event = publish("unknown.it")
    with old_worker_of(broker):
        assert about([delay_after_return(event) for _ in DELAYS_S]) == DELAYS_S
    delivery = event.deliveries.get()
    assert "a worker does not know the handler 'unknown.handle'" in delivery.error
    assert delivery.attempts == 0
    assert dead_letters(brokers, broker, queue) == 0


def test_the_delays_begin_anew_after_a_run(broker: dramatiq.Broker) -> None:
    event = publish("unknown.it")
    with old_worker_of(broker):
        assert delay_after_return(event) <= delay_after_return(event)
    with worker_of(broker):
        delay_after_return(event)
    assert "not the first time" in event.deliveries.get().error
    with old_worker_of(broker):
        assert delay_after_return(event) <= timedelta(seconds=30)
    event.deliveries.update(available_at=Now())
    relay_all()
    with worker_of(broker):
        assert finish(event) == {"unknown.handle": "succeeded"}


def test_a_message_of_another_producer_to_an_unknown_actor_is_a_dead_letter_as_in_dramatiq(
    brokers: Brokers, broker: dramatiq.Broker, queue: str
) -> None:
    broker.enqueue(dramatiq.Message(queue, "never.declared", (), {}, {}))
    with worker_of(broker):
        wait_until(lambda: dead_letters(brokers, broker, queue) == 1, what="the dead letter")


def test_a_delayed_message_of_another_producer_to_an_unknown_actor_is_a_dead_letter(
    brokers: Brokers, broker: dramatiq.Broker, queue: str
) -> None:
    broker.enqueue(dramatiq.Message(queue, "never.declared", (), {}, {}), delay=1)
    with worker_of(broker):
        wait_until(lambda: dead_letters(brokers, broker, queue) == 1, what="the dead letter")


@pytest.fixture
def removed() -> Iterator[None]:
    """Publish to a handler that is removed afterwards."""

    @outbox.handler("removed.it", name="shop.handlers.mail_receipts", queue_name=unique_name())
    def mail(event: Any) -> None: ...

    for _ in range(3):
        publish("removed.it")
    registry.remove("shop.handlers.mail_receipts")
    yield
    Delivery.objects.filter(handler="shop.handlers.mail_receipts").delete()


@pytest.mark.usefixtures("removed")
def test_a_relay_names_an_unknown_handler_once_with_its_deliveries(caplog: pytest.LogCaptureFixture) -> None:
    @outbox.handler("other.it", name="shop.handlers.mail_receipt", queue_name=unique_name())
    def mail(event: Any) -> None: ...

    try:
        with caplog.at_level(logging.WARNING), relaying() as relay:
            relay._rounds.dispatch_due()
            Delivery.objects.update(available_at=Now())
            relay._rounds.dispatch_due()
    finally:
        registry.remove("shop.handlers.mail_receipt")
    assert [one.getMessage() for one in caplog.records] == [
        "3 deliveries wait for handler 'shop.handlers.mail_receipts', which no code declares; "
        "did you mean 'shop.handlers.mail_receipt'?"
    ]


@pytest.mark.usefixtures("removed")
def test_a_relay_without_the_handler_puts_deliveries_off_with_growing_delays() -> None:
    event = Event.objects.filter(topic="removed.it").first()
    assert event is not None
    assert about([delay_after_return(event) for _ in DELAYS_S]) == DELAYS_S
    assert event.deliveries.get().attempts == 0


def test_the_sentence_about_waiting_deliveries_counts_up_to_a_limit() -> None:
    assert describe_waiting("x", 1) == "1 delivery waits for handler 'x', which no code declares"
    assert describe_waiting("x", COUNT_LIMIT).startswith("at least 100,000 deliveries wait for handler 'x'")
