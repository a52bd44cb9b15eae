"""OutboxSignal: every send is one event of the sender's transaction, with or without receivers."""

from contextlib import ExitStack
from functools import partial

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.dispatch import receiver as ordinary_receiver
from django.test.utils import CaptureQueriesContext

import outbox
from outbox import OutboxSignal, handler, publish
from outbox.errors import InvalidPayload, InvalidTopic, NotInTransaction, UnserializableArgument
from outbox.models import Delivery, Event
from outbox.signals import history
from outbox.signals.publishing_signal import PublishingSignal
from tests.support.data_flow import clear_broker, finish, flush, relay_all, worker
from tests.support.receivers import background, ordinary
from tests.testapp.models import Customer, Order
from tests.testapp.signals import order_status_changed

pytestmark = pytest.mark.django_db(transaction=True)

METHODS = ["send", "send_robust", "asend", "asend_robust"]


class Boom(Exception):
    """Raised by receivers."""


def boom(**arguments):
    raise Boom("receiver")


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture
def order() -> Order:
    return Order.objects.create()


def send(method: str, sender=Order, signal: PublishingSignal = order_status_changed, **arguments):
    call = getattr(signal, method)
    return (async_to_sync(call) if method.startswith("a") else call)(sender, **arguments)


def deliver(event: Event) -> dict[str, str]:
    relay_all()
    with worker():
        return finish(event)


# ---------------------------------------------------------------- one event per send


@pytest.mark.parametrize("method", METHODS)
def test_a_send_without_receivers_is_recorded_once(method, order):
    with transaction.atomic():
        assert send(method, order=order, old="pending", new="paid") == []
    event = Event.objects.get()
    assert (event.topic, event.key) == ("shop.order_status_changed", f"testapp.order:{order.pk}")
    assert not Delivery.objects.exists()


@pytest.mark.parametrize("method", METHODS)
def test_ordinary_receivers_are_called_as_django_does(method, order):
    with ordinary(order_status_changed, answer=lambda **_: "answered") as received, transaction.atomic():
        ((_, response),) = send(method, order=order, new="paid")
    assert response == "answered"
    assert received == [{"signal": order_status_changed, "sender": Order, "order": order, "new": "paid"}]


@pytest.mark.parametrize("method", METHODS)
def test_async_receivers_are_called_and_the_event_is_recorded_once(method, order):
    received = []

    @ordinary_receiver(order_status_changed)
    async def listen(sender, **arguments):
        received.append(arguments["new"])

    with transaction.atomic():
        send(method, order=order, new="paid")
    order_status_changed.disconnect(listen)
    assert (received, Event.objects.count()) == (["paid"], 1)


def test_a_receiver_connected_for_another_sender_is_not_called(order):
    with ordinary(order_status_changed, Customer) as received, transaction.atomic():
        order_status_changed.send(Order, order=order)
    assert (received, Event.objects.count()) == ([], 1)


def test_each_kind_of_subscription_gets_exactly_one_delivery_of_one_event(order):
    with ExitStack() as stack:
        listen = partial(background, name="by_method")
        by_method = stack.enter_context(listen(order_status_changed.handler))
        by_receiver = stack.enter_context(background(order_status_changed, name="by_receiver", sender=Order))
        by_topic = stack.enter_context(background(partial(handler, "shop.*"), name="by_topic"))
        with transaction.atomic():
            order_status_changed.send(Order, order=order, new="paid")
        event = Event.objects.get()
        assert deliver(event) == dict.fromkeys(("by_method", "by_receiver", "by_topic"), "succeeded")
    expected = {"signal": order_status_changed, "sender": Order, "order": order, "new": "paid"}
    assert (by_method, by_receiver) == ([expected], [expected])
    assert [received["event"].id for received in by_topic] == [event.pk]


def test_a_send_without_matching_receivers_is_recorded(order):
    with background(order_status_changed, sender=Customer), transaction.atomic():
        order_status_changed.send(Order, order=order)
    assert (Event.objects.count(), Delivery.objects.count()) == (1, 0)


def test_a_condition_prevents_the_delivery_but_not_the_event(order):
    with background(order_status_changed, when=lambda new: new == "paid"), transaction.atomic():
        order_status_changed.send(Order, order=order, new="lost")
        order_status_changed.send(Order, order=order, new="paid")
    assert [event.deliveries.count() for event in Event.objects.order_by("pk")] == [0, 1]


def test_a_send_takes_one_statement(order):
    with background(order_status_changed), transaction.atomic(), CaptureQueriesContext(connection) as queries:
        order_status_changed.send(Order, order=order)
    assert len(queries) == (1 if connection.vendor == "postgresql" else len(queries))


def test_has_listeners_is_true_without_receivers():
    assert order_status_changed.has_listeners(Order)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["send", "asend"])
def test_an_error_of_a_receiver_rolls_back_the_event(method, order):
    with ordinary(order_status_changed, answer=boom), pytest.raises(Boom), transaction.atomic():
        send(method, order=order)
    assert not Event.objects.exists()


@pytest.mark.parametrize("method", ["send_robust", "asend_robust"])
def test_a_robust_send_keeps_the_event_if_a_receiver_raises(method, order, caplog):
    with ordinary(order_status_changed, answer=boom), transaction.atomic():
        ((_, response),) = send(method, order=order)
    assert isinstance(response, Boom)
    assert Event.objects.count() == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_send_outside_a_transaction_is_refused_before_any_receiver_runs(method, order):
    with ordinary(order_status_changed) as received, pytest.raises(NotInTransaction):
        send(method, order=order)
    assert received == []


def test_without_require_transaction_a_send_outside_a_transaction_is_recorded(settings, order):
    settings.OUTBOX = {"REQUIRE_TRANSACTION": False}
    order_status_changed.send(Order, order=order)
    assert Event.objects.count() == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_argument_that_cannot_be_encoded_is_refused(method):
    refused = pytest.raises(UnserializableArgument, match=r"lock.*order_status_changed")
    with ordinary(order_status_changed) as received, transaction.atomic(), refused:
        send(method, lock=object())
    assert received == []


def test_a_rolled_back_send_is_not_recorded(order):
    with pytest.raises(Boom), transaction.atomic():
        order_status_changed.send(Order, order=order)
        raise Boom
    assert not Event.objects.exists()


@pytest.mark.parametrize("topic", ["", "a b", "shop.*", None])
def test_a_malformed_topic_is_refused_when_the_signal_is_defined(topic):
    with pytest.raises(InvalidTopic):
        OutboxSignal(topic)


def test_using_names_the_database_of_the_transaction(order):
    with transaction.atomic(), pytest.raises(outbox.errors.UnknownDatabase):
        order_status_changed.send(Order, order=order, using="replica")
    with transaction.atomic():
        order_status_changed.send(Order, order=order, using="default")
    assert Event.objects.count() == 1


# ---------------------------------------------------------------- recent()


def test_recent_sends_are_listed_newest_first_with_their_arguments(order):
    for new in ("paid", "sent", "lost"):
        with transaction.atomic():
            order_status_changed.send(Order, order=order, new=new)
            publish("shop.other", new)
    latest = order_status_changed.recent(limit=2)
    assert [send.arguments["new"] for send in latest] == ["lost", "sent"]
    assert latest[0].arguments == {"sender": Order, "order": order, "new": "lost"}
    assert latest[0].created_at >= latest[1].created_at


def test_reading_recent_sends_takes_one_query_and_their_instances_one_more():
    for _ in range(5):
        with transaction.atomic():
            order_status_changed.send(Order, order=Order.objects.create())
    with CaptureQueriesContext(connection) as reading:
        latest = order_status_changed.recent()
    with CaptureQueriesContext(connection) as decoding:
        orders = {send.arguments["order"].pk for send in latest}
    assert (len(reading), len(decoding), len(orders)) == (1, 1, 5)


def test_the_scan_for_recent_sends_is_bounded(order, monkeypatch):
    monkeypatch.setattr(history, "RECENT_SCAN", 3)
    with transaction.atomic():
        order_status_changed.send(Order, order=order, new="old")
        order_status_changed.send(Order, order=order, new="new")
        for _ in range(2):
            publish("shop.other")
    assert [send.arguments["new"] for send in order_status_changed.recent()] == ["new"]


def test_a_deleted_instance_is_none_in_recent_sends(order):
    with transaction.atomic():
        order_status_changed.send(Order, order=order)
    order.delete()
    assert order_status_changed.recent()[0].arguments["order"] is None


def test_a_send_that_cannot_be_decoded_does_not_affect_other_sends(order):
    with transaction.atomic():
        order_status_changed.send(Order, order=order)
        publish("shop.order_status_changed", {"arguments": {"order": {"$": "class", "v": "gone.Model"}}})
        publish("shop.order_status_changed", "published by hand")
    by_hand, undecodable, sent = order_status_changed.recent()
    assert (by_hand.arguments, by_hand.payload, sent.arguments["order"]) == ({}, "published by hand", order)
    with pytest.raises(InvalidPayload):
        _ = undecodable.arguments
