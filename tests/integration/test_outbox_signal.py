"""OutboxSignal: every send is one event of the sender's transaction, whoever listens."""

from contextlib import ExitStack
from functools import partial

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.dispatch import receiver as ordinary_receiver
from django.test.utils import CaptureQueriesContext

import outbox
from outbox import OutboxSignal, handler, publish, recorded
from outbox.errors import InvalidPayload, InvalidTopic, NotInTransaction, UnserializableArgument
from outbox.models import Delivery, Event
from outbox.signals import PublishingSignal
from tests.helpers import finish, flush, relay_all, worker
from tests.listening import background, clear_broker, ordinary
from tests.testapp.models import Customer, Order
from tests.testapp.signals import order_status_changed

pytestmark = pytest.mark.django_db(transaction=True)

WAYS = ["send", "send_robust", "asend", "asend_robust"]


class Boom(Exception):
    """What receivers raise."""


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


def send(way: str, sender=Order, signal: PublishingSignal = order_status_changed, **arguments):
    method = getattr(signal, way)
    return (async_to_sync(method) if way.startswith("a") else method)(sender, **arguments)


def deliver(event: Event) -> dict[str, str]:
    relay_all()
    with worker():
        return finish(event)


# ---------------------------------------------------------------- one event per send


@pytest.mark.parametrize("way", WAYS)
def test_a_send_is_recorded_once_without_any_receiver(way, order):
    with transaction.atomic():
        assert send(way, order=order, old="pending", new="paid") == []
    event = Event.objects.get()
    assert (event.topic, event.key) == ("shop.order_status_changed", f"testapp.order:{order.pk}")
    assert not Delivery.objects.exists()


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_receivers_are_called_as_django_does(way, order):
    with ordinary(order_status_changed, answer=lambda **_: "answered") as heard, transaction.atomic():
        ((_, response),) = send(way, order=order, new="paid")
    assert response == "answered"
    assert heard == [{"signal": order_status_changed, "sender": Order, "order": order, "new": "paid"}]


@pytest.mark.parametrize("way", WAYS)
def test_async_receivers_are_called_and_the_event_is_recorded_once(way, order):
    heard = []

    @ordinary_receiver(order_status_changed)
    async def listen(sender, **arguments):
        heard.append(arguments["new"])

    with transaction.atomic():
        send(way, order=order, new="paid")
    order_status_changed.disconnect(listen)
    assert (heard, Event.objects.count()) == (["paid"], 1)


def test_a_receiver_connected_for_another_sender_is_not_called(order):
    with ordinary(order_status_changed, Customer) as heard, transaction.atomic():
        order_status_changed.send(Order, order=order)
    assert (heard, Event.objects.count()) == ([], 1)


def test_each_kind_of_subscription_gets_exactly_one_delivery_of_the_one_event(order):
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
    assert [heard["event"].id for heard in by_topic] == [event.pk]


def test_a_background_receiver_of_another_sender_gets_nothing_and_the_send_is_recorded(order):
    with background(order_status_changed, sender=Customer), transaction.atomic():
        order_status_changed.send(Order, order=order)
    assert (Event.objects.count(), Delivery.objects.count()) == (1, 0)


def test_a_condition_decides_the_delivery_and_not_the_record(order):
    with background(order_status_changed, when=lambda new: new == "paid"), transaction.atomic():
        order_status_changed.send(Order, order=order, new="lost")
        order_status_changed.send(Order, order=order, new="paid")
    assert [event.deliveries.count() for event in Event.objects.order_by("pk")] == [0, 1]


def test_a_send_takes_one_statement(order):
    with background(order_status_changed), transaction.atomic(), CaptureQueriesContext(connection) as queries:
        order_status_changed.send(Order, order=order)
    assert len(queries) == (1 if connection.vendor == "postgresql" else len(queries))


def test_callers_that_ask_for_listeners_send_too():
    assert order_status_changed.has_listeners(Order)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("way", ["send", "asend"])
def test_an_error_of_a_receiver_ends_the_send_and_takes_the_event_with_the_transaction(way, order):
    with ordinary(order_status_changed, answer=boom), pytest.raises(Boom), transaction.atomic():
        send(way, order=order)
    assert not Event.objects.exists()


@pytest.mark.parametrize("way", ["send_robust", "asend_robust"])
def test_a_robust_send_keeps_the_event_whatever_the_receivers_raise(way, order, caplog):
    with ordinary(order_status_changed, answer=boom), transaction.atomic():
        ((_, response),) = send(way, order=order)
    assert isinstance(response, Boom)
    assert Event.objects.count() == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_send_outside_a_transaction_is_refused_before_any_receiver_runs(way, order):
    with ordinary(order_status_changed) as heard, pytest.raises(NotInTransaction):
        send(way, order=order)
    assert heard == []


def test_require_transaction_off_records_a_send_that_stands_alone(settings, order):
    settings.OUTBOX = {"REQUIRE_TRANSACTION": False}
    order_status_changed.send(Order, order=order)
    assert Event.objects.count() == 1


@pytest.mark.parametrize("way", WAYS)
def test_an_argument_that_cannot_travel_is_refused(way):
    refused = pytest.raises(UnserializableArgument, match=r"lock.*order_status_changed")
    with ordinary(order_status_changed) as heard, transaction.atomic(), refused:
        send(way, lock=object())
    assert heard == []


def test_a_rolled_back_send_never_was(order):
    with pytest.raises(Boom), transaction.atomic():
        order_status_changed.send(Order, order=order)
        raise Boom
    assert not Event.objects.exists()


@pytest.mark.parametrize("topic", ["", "a b", "shop.*", None])
def test_a_malformed_topic_is_refused_when_the_signal_is_defined(topic):
    with pytest.raises(InvalidTopic):
        OutboxSignal(topic)


def test_using_names_the_database_whose_transaction_is_joined(order):
    with transaction.atomic(), pytest.raises(outbox.errors.UnknownDatabase):
        order_status_changed.send(Order, order=order, using="replica")
    with transaction.atomic():
        order_status_changed.send(Order, order=order, using="default")
    assert Event.objects.count() == 1


# ---------------------------------------------------------------- recent()


def test_recent_sends_come_newest_first_with_their_arguments(order):
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
    monkeypatch.setattr(recorded, "RECENT_SCAN", 3)
    with transaction.atomic():
        order_status_changed.send(Order, order=order, new="old")
        order_status_changed.send(Order, order=order, new="new")
        for _ in range(2):
            publish("shop.other")
    assert [send.arguments["new"] for send in order_status_changed.recent()] == ["new"]


def test_an_instance_that_is_gone_is_none_among_recent_sends(order):
    with transaction.atomic():
        order_status_changed.send(Order, order=order)
    order.delete()
    assert order_status_changed.recent()[0].arguments["order"] is None


def test_a_send_that_cannot_be_decoded_spoils_no_other(order):
    with transaction.atomic():
        order_status_changed.send(Order, order=order)
        publish("shop.order_status_changed", {"arguments": {"order": {"$": "class", "v": "gone.Model"}}})
        publish("shop.order_status_changed", "published by hand")
    by_hand, undecodable, sent = order_status_changed.recent()
    assert (by_hand.arguments, by_hand.payload, sent.arguments["order"]) == ({}, "published by hand", order)
    with pytest.raises(InvalidPayload):
        _ = undecodable.arguments
