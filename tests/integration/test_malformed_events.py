"""Rows that were written by hand: deliveries of malformed events fail at once, with the reason."""

from contextlib import contextmanager

import pytest
from django.db import IntegrityError, transaction
from django.db.models import JSONField, Value
from django.db.models.signals import post_save

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.signals.background import BACKGROUND_HANDLER, send_background
from outbox.signals.recorder import unsubscribe
from tests.support.data_flow import clear_broker, finish, flush, publish, relay_all, worker
from tests.support.processes import wait_until
from tests.support.receivers import background
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Product
from tests.testapp.signals import order_paid

pytestmark = pytest.mark.django_db(transaction=True)

SOUND = {"signal": "tests.testapp.signals.order_paid", "arguments": {"sender": None, "order_id": 1}}

MALFORMED = [
    None,
    7,
    "text",
    [1],
    {},
    {"arguments": {"sender": None}},
    {"signal": "tests.testapp.signals.order_paid"},
    {**SOUND, "signal": 7},
    {**SOUND, "arguments": [1]},
    {**SOUND, "arguments": {"order_id": 1}},
    {**SOUND, "snapshot_handlers": ["listening"]},
    {**SOUND, "snapshot_handlers": 7},
    {**SOUND, "condition_arguments": 7},
    {**SOUND, "condition_arguments": {"listening": 7}},
    {**SOUND, "instances_argument": "instances"},
    {**SOUND, "instances_argument": ["sender"]},
]


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


def rewrite(event: Event, payload: object) -> None:
    """Change the payload of an event in the database."""
    # A Value, since a plain None would mean SQL's NULL.
    Event.objects.filter(pk=event.pk).update(payload=Value(payload, JSONField()))


def is_refused(delivery: Delivery) -> bool:
    return "payload: is not the record of a signal's send" in delivery.error


# ---------------------------------------------------------------- receivers


@pytest.mark.parametrize("payload", MALFORMED)
def test_a_receiver_of_a_malformed_event_fails_at_once_with_the_reason(payload):
    with background(order_paid) as calls:
        with transaction.atomic():
            order_paid.send(sender=None, order_id=1)
        event = Event.objects.get()
        Delivery.objects.exclude(handler="listening").delete()
        rewrite(event, payload)
        relay_all()
        with worker():
            assert finish(event) == {"listening": "failed"}
    assert is_refused(event.deliveries.get())
    assert calls == []


def test_a_receiver_with_a_throws_option_fails_at_once_too():
    with background(order_paid, throws=ZeroDivisionError):
        with transaction.atomic():
            order_paid.send(sender=None, order_id=1)
        event = Event.objects.get()
        Delivery.objects.exclude(handler="listening").delete()
        rewrite(event, [1])
        relay_all()
        with worker():
            assert finish(event) == {"listening": "failed"}


def test_a_background_send_of_a_malformed_event_fails_at_once():
    with transaction.atomic():
        event = send_background(order_paid, order_id=1)
    Delivery.objects.exclude(handler=BACKGROUND_HANDLER).delete()
    rewrite(event, {"arguments": {}})
    relay_all()
    with worker():
        assert finish(event) == {BACKGROUND_HANDLER: "failed"}
    assert is_refused(event.deliveries.get())


# ---------------------------------------------------------------- batches


@contextmanager
def batched_receiver(**options):
    """Declare a receiver with batches of three; yield the names that it has received."""
    seen: list[str] = []

    @outbox.receiver(post_save, sender=Product, batch_size=3, queue_name=QUEUE, name="batched", **options)
    def batched(sends):
        seen.extend(send["instance"].name for send in sends)

    try:
        yield seen
    finally:
        unsubscribe("batched")
        registry.remove("batched")


def three_saved() -> list[Event]:
    with transaction.atomic():
        for name in ("first", "second", "third"):
            Product.objects.create(name=name)
    return list(Event.objects.order_by("pk"))


def try_whole_and_then_one_by_one(events: list[Event]) -> list[str]:
    """Dispatch and run the batch, then its events one by one; return the final state of each delivery."""

    def is_returned():
        flush()
        return not Delivery.objects.filter(state="dispatched").exists()

    with worker():
        relay_all()
        wait_until(is_returned, what="the batch to be returned to pending")
        relay_all()
        return [finish(event)["batched"] for event in events]


@pytest.mark.parametrize("payload", [[1], {}, None])
def test_only_the_malformed_event_of_a_batch_fails(payload):
    with batched_receiver() as seen:
        events = three_saved()
        rewrite(events[1], payload)
        assert try_whole_and_then_one_by_one(events) == ["succeeded", "failed", "succeeded"]
    assert is_refused(events[1].deliveries.get())
    assert sorted(seen) == ["first", "third"]


def test_only_the_event_of_a_batch_that_cannot_be_decoded_fails():
    with batched_receiver(max_retries=0) as seen:
        events = three_saved()
        sender = {"$": "class", "v": "shop.renamed"}
        rewrite(events[0], {**events[0].payload, "arguments": {"sender": sender}})
        assert try_whole_and_then_one_by_one(events) == ["failed", "succeeded", "succeeded"]
    assert "sender: it cannot be decoded here" in events[0].deliveries.get().error
    assert sorted(seen) == ["second", "third"]


def test_only_the_event_of_a_batch_whose_instance_is_gone_fails():
    with batched_receiver(missing="fail") as seen:
        events = three_saved()
        Product.objects.filter(name="third").delete()
        assert try_whole_and_then_one_by_one(events) == ["succeeded", "succeeded", "failed"]
    assert "no longer exists" in events[2].deliveries.get().error
    assert sorted(seen) == ["first", "second"]


def test_a_malformed_event_rolls_back_its_transactional_batch():
    with batched_receiver(transactional=True) as seen:
        events = three_saved()
        rewrite(events[1], {})
        assert try_whole_and_then_one_by_one(events) == ["succeeded", "failed", "succeeded"]
    assert sorted(seen) == ["first", "third"]


# ---------------------------------------------------------------- deliveries


def test_a_state_that_does_not_exist_is_refused_by_the_database():
    event = publish("test.recorded")
    with pytest.raises(IntegrityError, match="outbox_delivery_state"), transaction.atomic():
        event.deliveries.update(state="done")


@pytest.mark.parametrize("state", Delivery.State.values)
def test_the_database_accepts_every_state(state):
    event = publish("test.recorded")
    assert event.deliveries.update(state=state) == 2
