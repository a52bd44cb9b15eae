"""Background receivers of every kind of signal, through relay and worker."""

from __future__ import annotations

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
from outbox.collectors import unsubscribe
from outbox.errors import UnserializableArgument
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.helpers import finish, flush, relay_all, worker
from tests.listening import Heard, background, clear_broker
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
    """Relay and work off everything; return the states in which the receivers of a test end."""
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)
    return set(Delivery.objects.filter(handler="listening").values_list("status", flat=True))


@contextmanager
def stacked(*decorators: Any) -> Iterator[Heard]:
    """Put several decorators on one receiver, the first one innermost."""
    heard: Heard = []

    def listen(**arguments: Any) -> None:
        heard.append(arguments)

    receiver: Any = listen
    for decorate in decorators:
        receiver = decorate(receiver)
    try:
        yield heard
    finally:
        unsubscribe("listening")
        registry.remove("listening")


def on(signal: Any, **options: Any) -> Any:
    return outbox.receiver(signal, name="listening", queue_name=QUEUE, **options)


# ---------------------------------------------------------------- Django's signals


def test_a_deletion_is_received_before_and_after_with_the_fields_as_they_were():
    customer = Customer.objects.create(name="Ada")
    with stacked(on([pre_delete, post_delete], sender=Customer)) as heard:
        with transaction.atomic():
            pk = customer.pk
            customer.delete()
        assert deliver() == {"succeeded"}
    assert {send["signal"] for send in heard} == {pre_delete, post_delete}
    assert {(send["instance"].pk, send["instance"].name) for send in heard} == {(pk, "Ada")}


def test_what_falls_with_a_cascade_is_received_too():
    customer = Customer.objects.create(name="Ada")
    Order.objects.create(customer=customer, note="falls with it")
    with background(pre_delete, sender=Order) as heard:
        with transaction.atomic():
            customer.delete()
        assert deliver() == {"succeeded"}
    assert [send["instance"].note for send in heard] == ["falls with it"]


def test_a_save_is_received_before_it_without_a_primary_key():
    with background(pre_save, sender=Customer) as heard:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
        assert deliver() == {"succeeded"}
    (send,) = heard
    assert (send["instance"].pk, send["instance"].name, send["update_fields"]) == (None, "Ada", None)


def test_a_change_of_a_many_to_many_relation_is_received_with_its_keys():
    line = Line.objects.create(basket=Basket.objects.create(name="b"), sku="s")
    tags = [Tag.objects.create(name=name) for name in ("red", "blue")]
    with background(m2m_changed, sender=Line.tags.through) as heard:
        with transaction.atomic():
            line.tags.add(*tags)
        assert deliver() == {"succeeded"}
    by_action = {send["action"]: send for send in heard}
    assert set(by_action) == {"pre_add", "post_add"}
    added = by_action["post_add"]
    assert (added["instance"], added["model"], added["reverse"]) == (line, Tag, False)
    assert added["pk_set"] == {tag.pk for tag in tags}
    assert added["sender"] is Line.tags.through


def test_clearing_a_many_to_many_relation_has_no_keys():
    line = Line.objects.create(basket=Basket.objects.create(name="b"), sku="s")
    line.tags.add(Tag.objects.create(name="red"))
    with background(m2m_changed, sender=Line.tags.through) as heard:
        with transaction.atomic():
            line.tags.clear()
        assert deliver() == {"succeeded"}
    assert {(send["action"], send["pk_set"]) for send in heard} == {
        ("pre_clear", None),
        ("post_clear", None),
    }


def test_a_signal_that_carries_the_request_is_refused_with_what_to_pass_instead():
    user = get_user_model().objects.create_user("ada")
    remedy = (
        "request: HttpRequest cannot travel to a worker; pass what the receiver needs of the request, such "
        r"as request\.path or request\.user \(signal 'django\.contrib\.auth\.signals\.user_logged_in'\)"
    )
    with (
        background(user_logged_in) as heard,
        transaction.atomic(),
        pytest.raises(UnserializableArgument, match=remedy),
    ):
        user_logged_in.send(sender=type(user), request=HttpRequest(), user=user)
    assert not Event.objects.exists()
    assert heard == []


def test_a_signal_of_django_that_carries_plain_values_is_received():
    with background(user_login_failed) as heard:
        with transaction.atomic():
            user_login_failed.send(sender="tests", credentials={"username": "ada"}, request=None)
        assert deliver() == {"succeeded"}
    (send,) = heard
    assert (send["sender"], send["credentials"], send["request"]) == ("tests", {"username": "ada"}, None)


# ---------------------------------------------------------------- signals of a project's own


def test_a_signal_may_be_sent_by_nobody():
    with background(order_paid) as heard:
        with transaction.atomic():
            order_paid.send(sender=None, order_id=7)
        assert deliver() == {"succeeded"}
    assert heard == [{"signal": order_paid, "sender": None, "order_id": 7}]


def test_a_receiver_of_one_sender_does_not_hear_nobody():
    with background(order_paid, sender=Order) as heard:
        with transaction.atomic():
            order_paid.send(sender=None, order_id=7)
            order_paid.send(sender=Order, order_id=8)
        assert deliver() == {"succeeded"}
    assert [send["order_id"] for send in heard] == [8]


# ---------------------------------------------------------------- several senders and signals


def test_stacked_decorators_listen_to_both_senders():
    with stacked(on(post_save, sender=Customer), on(post_save, sender=Product)) as heard:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
            Product.objects.create(name="Engine")
            Tag.objects.create(name="unheard")
        assert deliver() == {"succeeded"}
    assert sorted(send["instance"].name for send in heard) == ["Ada", "Engine"]
    assert {send["sender"] for send in heard} == {Customer, Product}


def test_stacked_decorators_make_one_handler():
    with stacked(on(post_save, sender=Customer), on(post_delete, sender=Product)):
        with transaction.atomic():
            Customer.objects.create(name="Ada")
        assert list(Delivery.objects.values_list("handler", flat=True)) == ["listening"]


def test_one_receiver_hears_several_signals_and_is_told_which():
    with stacked(on([post_save, pre_delete], sender=Tag)) as heard:
        with transaction.atomic():
            tag = Tag.objects.create(name="red")
            tag.delete()
        deliver()
    # The row that the save is about is gone by the time it is looked for.
    assert [send["signal"] for send in heard] == [pre_delete]
    found = Delivery.objects.order_by("pk").values_list("event__topic", "status")
    assert list(found) == [
        ("post_save.testapp.tag", "discarded"),
        ("pre_delete.testapp.tag", "succeeded"),
    ]


def test_a_sender_that_is_named_is_the_model_of_that_name():
    with background(post_save, sender="testapp.Customer") as heard:
        with transaction.atomic():
            Customer.objects.create(name="Ada")
            Tag.objects.create(name="unheard")
        assert deliver() == {"succeeded"}
    assert [(send["sender"], send["instance"].name) for send in heard] == [(Customer, "Ada")]
