"""What a background receiver gets for an instance: the row as it is, as it was, or what to do without."""

import pytest
from django.db import transaction
from django.db.models.signals import post_save

from outbox.models import Delivery, Event
from tests.helpers import finish, flush, relay_all, worker
from tests.listening import background, clear_broker
from tests.testapp.models import Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


def deliver() -> set[str]:
    """Relay and work off everything; return the states in which deliveries end."""
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)
    return set(Delivery.objects.values_list("status", flat=True))


def test_a_receiver_reads_the_instance_as_it_is_when_it_runs():
    with background(post_save, sender=Order) as heard:
        with transaction.atomic():
            order = Order.objects.create(note="as sent")
        Order.objects.filter(pk=order.pk).update(note="changed since")
        assert deliver() == {"succeeded"}
    assert heard[0]["instance"].note == "changed since"


def test_a_snapshot_carries_the_instance_as_it_was():
    with background(post_save, sender=Order, snapshot=True) as heard:
        with transaction.atomic():
            order = Order.objects.create(note="as sent", total="1.50")
        Order.objects.filter(pk=order.pk).update(note="changed since")
        assert deliver() == {"succeeded"}
    (send,) = heard
    assert (send["instance"].pk, send["instance"].note) == (order.pk, "as sent")
    assert send["created"] is True


def test_a_snapshot_outlives_its_row():
    with background(post_save, sender=Order, snapshot=True) as heard:
        with transaction.atomic():
            Order.objects.create(note="short-lived")
        Order.objects.all().delete()
        assert deliver() == {"succeeded"}
    assert heard[0]["instance"].note == "short-lived"


def test_a_row_that_is_gone_fails_a_receiver_that_asks_for_it_at_once():
    with background(post_save, sender=Order, missing="fail") as heard:
        with transaction.atomic():
            order = Order.objects.create()
        pk = order.pk
        order.delete()
        assert deliver() == {"failed"}
    assert f"testapp.Order with primary key {pk} no longer exists" in Delivery.objects.get().error
    assert heard == []


def test_a_row_that_is_gone_is_none_to_a_receiver_that_asks_for_it():
    with background(post_save, sender=Order, missing="pass") as heard:
        with transaction.atomic():
            order = Order.objects.create()
        order.delete()
        assert deliver() == {"succeeded"}
    (send,) = heard
    assert (send["instance"], send["sender"], send["created"]) == (None, Order, True)


def test_a_row_that_is_gone_discards_the_delivery_otherwise():
    with background(post_save, sender=Order) as heard:
        with transaction.atomic():
            order = Order.objects.create()
        order.delete()
        assert deliver() == {"discarded"}
    assert heard == []
