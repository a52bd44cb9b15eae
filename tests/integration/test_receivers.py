"""Background receivers of every kind of signal, through relay and worker."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.http import HttpRequest

import outbox
from outbox.errors import UnserializableArgument
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from outbox.subscribing.delivery_options import delivery_options
from tests.support.data_flow import clear_broker, finish, flush, relay_all, worker
from tests.support.receivers import Calls, background
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Basket, Customer, Line, Order, Product, Tag
from tests.testapp.signals import order_paid

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


def deliver() -> set[str]:
    """Relay and run all deliveries; return the final states of the test's receiver."""
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)
    return set(Delivery.objects.filter(handler="listening").values_list("state", flat=True))


@contextmanager
def stacked(*decorators: Any) -> Iterator[Calls]:
    """Put several decorators on one receiver, the first one innermost."""
    received: Calls = []

    def listen(**arguments: Any) -> None:
        received.append(arguments)

    receiver: Any = listen
    for decorate in decorators:
        receiver = decorate(receiver)
    try:
        yield received
    finally:
        unsubscribe("listening")
        registry.remove("listening")


def on(signal: Any, **options: Any) -> Any:
    return outbox.receiver(signal, name="listening", queue_name=QUEUE, **options)


def test_handler_and_receiver_take_the_same_delivery_options():
    names = inspect.signature(delivery_options).parameters
    signatures = [inspect.signature(decorator) for decorator in (outbox.handler, outbox.receiver)]
    of_handler, of_receiver = ([signature.parameters.get(name) for name in names] for signature in signatures)
    assert None not in of_handler
    assert of_handler == of_receiver


# ---------------------------------------------------------------- Django's signals


def test_a_deletion_is_received_before_and_after_with_the_field_values():
    customer = Customer.objects.create(name="Ada")
    with stacked(on([pre_delete, post_delete], sender=Customer)) as received:
        with transaction.atomic():
            pk = customer.pk
            customer.delete()
        assert deliver() == {"succeeded"}
    assert {send["signal"] for send in received} == {pre_delete, post_delete}
    assert {(send["instance"].pk, send["instance"].name) for send in received} == {(pk, "Ada")}


def test_a_cascaded_deletion_is_received():
    customer = Customer.objects.create(name="Ada")
    Order.objects.create(customer=customer, note="cascaded")
    with background(pre_delete, sender=Order) as received:
        with transaction.atomic():
            customer.delete()
        assert deliver() == {"succeeded"}
    assert [send["instance"].note for send in received] == ["cascaded"]


def test_a_pre_save_of_a_new_instance_is_received_without_a_primary_key():
    with background(pre_save, sender=Customer) as received:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
        assert deliver() == {"succeeded"}
    (send,) = received
    assert (send["instance"].pk, send["instance"].name, send["update_fields"]) == (None, "Ada", None)


def test_a_change_of_a_many_to_many_relation_is_received_with_its_keys():
    line = Line.objects.create(basket=Basket.objects.create(name="b"), sku="s")
    tags = [Tag.objects.create(name=name) for name in ("red", "blue")]
    with background(m2m_changed, sender=Line.tags.through) as received:
        with transaction.atomic():
            line.tags.add(*tags)
        assert deliver() == {"succeeded"}
    by_action = {send["action"]: send for send in received}
    assert set(by_action) == {"pre_add", "post_add"}
    added = by_action["post_add"]
    assert (added["instance"], added["model"], added["reverse"]) == (line, Tag, False)
    assert added["pk_set"] == {tag.pk for tag in tags}
    assert added["sender"] is Line.tags.through


def test_clearing_a_many_to_many_relation_has_no_keys():
    line = Line.objects.create(basket=Basket.objects.create(name="b"), sku="s")
    line.tags.add(Tag.objects.create(name="red"))
    with background(m2m_changed, sender=Line.tags.through) as received:
        with transaction.atomic():
            line.tags.clear()
        assert deliver() == {"succeeded"}
    assert {(send["action"], send["pk_set"]) for send in received} == {
        ("pre_clear", None),
        ("post_clear", None),
    }


def test_a_signal_with_a_request_is_refused_with_the_remedy():
    user = get_user_model().objects.create_user("ada")
    remedy = (
        "request: HttpRequest cannot be sent to a worker; pass the values that the receiver needs, such "
        r"as request\.path or request\.user \(signal 'django\.contrib\.auth\.signals\.user_logged_in'\)"
    )
    with (
        background(user_logged_in) as received,
        transaction.atomic(),
        pytest.raises(UnserializableArgument, match=remedy),
    ):
        user_logged_in.send(sender=type(user), request=HttpRequest(), user=user)
    assert not Event.objects.exists()
    assert received == []


def test_a_signal_of_django_with_plain_values_is_received():
    with background(user_login_failed) as received:
        with transaction.atomic():
            user_login_failed.send(sender="tests", credentials={"username": "ada"}, request=None)
        assert deliver() == {"succeeded"}
    (send,) = received
    assert (send["sender"], send["credentials"], send["request"]) == ("tests", {"username": "ada"}, None)


# ---------------------------------------------------------------- signals of a project


def test_a_signal_without_a_sender_is_received():
    with background(order_paid) as received:
        with transaction.atomic():
            order_paid.send(sender=None, order_id=7)
        assert deliver() == {"succeeded"}
    assert received == [{"signal": order_paid, "sender": None, "order_id": 7}]


def test_a_receiver_of_one_sender_does_not_get_sends_without_a_sender():
    with background(order_paid, sender=Order) as received:
        with transaction.atomic():
            order_paid.send(sender=None, order_id=7)
            order_paid.send(sender=Order, order_id=8)
        assert deliver() == {"succeeded"}
    assert [send["order_id"] for send in received] == [8]


# ---------------------------------------------------------------- several senders and signals


def test_stacked_decorators_subscribe_to_both_senders():
    with stacked(on(post_save, sender=Customer), on(post_save, sender=Product)) as received:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
            Product.objects.create(name="Engine")
            Tag.objects.create(name="other")
        assert deliver() == {"succeeded"}
    assert sorted(send["instance"].name for send in received) == ["Ada", "Engine"]
    assert {send["sender"] for send in received} == {Customer, Product}


def test_stacked_decorators_make_one_handler():
    with stacked(on(post_save, sender=Customer), on(post_delete, sender=Product)):
        with transaction.atomic():
            Customer.objects.create(name="Ada")
        assert list(Delivery.objects.values_list("handler", flat=True)) == ["listening"]


def test_one_receiver_gets_several_signals_with_their_names():
    with stacked(on([post_save, pre_delete], sender=Tag)) as received:
        with transaction.atomic():
            tag = Tag.objects.create(name="red")
            tag.delete()
        deliver()
    # The saved row is deleted before the worker reads it.
    assert [send["signal"] for send in received] == [pre_delete]
    found = Delivery.objects.order_by("pk").values_list("event__topic", "state")
    assert list(found) == [
        ("post_save.testapp.tag", "discarded"),
        ("pre_delete.testapp.tag", "succeeded"),
    ]


def test_a_sender_given_as_a_label_is_the_model():
    with background(post_save, sender="testapp.Customer") as received:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
            Tag.objects.create(name="other")
        assert deliver() == {"succeeded"}
    assert [(send["sender"], send["instance"].name) for send in received] == [(Customer, "Ada")]
