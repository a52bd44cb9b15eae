"""The instances of a background receiver: the current row, a snapshot, or a row that was deleted."""

import pytest
from django.db import transaction
from django.db.models.signals import post_save

from outbox.models import Delivery, Event
from tests.support.data_flow import clear_broker, finish, flush, relay_all, worker
from tests.support.receivers import background
from tests.testapp.models import Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


def deliver() -> set[str]:
    """Relay and run all deliveries; return their final states."""
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)
    return set(Delivery.objects.values_list("state", flat=True))


def test_a_receiver_reads_the_instance_as_it_is_when_it_runs():
    with background(post_save, sender=Order) as received:
        with transaction.atomic():
            order = Order.objects.create(note="as sent")
        Order.objects.filter(pk=order.pk).update(note="changed since")
        assert deliver() == {"succeeded"}
    assert received[0]["instance"].note == "changed since"


def test_a_snapshot_has_the_values_of_the_send():
    with background(post_save, sender=Order, snapshot=True) as received:
        with transaction.atomic():
            order = Order.objects.create(note="as sent", total="1.50")
        Order.objects.filter(pk=order.pk).update(note="changed since")
        assert deliver() == {"succeeded"}
    (send,) = received
    assert (send["instance"].pk, send["instance"].note) == (order.pk, "as sent")
    assert send["created"] is True


def test_a_snapshot_is_received_after_its_row_is_deleted():
    with background(post_save, sender=Order, snapshot=True) as received:
        with transaction.atomic():
            Order.objects.create(note="short-lived")
        Order.objects.all().delete()
        assert deliver() == {"succeeded"}
    assert received[0]["instance"].note == "short-lived"


def test_a_deleted_row_fails_the_delivery_at_once_with_missing_fail():
    with background(post_save, sender=Order, missing="fail") as received:
        with transaction.atomic():
            order = Order.objects.create()
        pk = order.pk
        order.delete()
        assert deliver() == {"failed"}
    assert f"testapp.Order with primary key {pk} no longer exists" in Delivery.objects.get().error
    assert received == []


def test_a_deleted_row_is_none_with_missing_pass():
    with background(post_save, sender=Order, missing="pass") as received:
        with transaction.atomic():
            order = Order.objects.create()
        order.delete()
        assert deliver() == {"succeeded"}
    (send,) = received
    assert (send["instance"], send["sender"], send["created"]) == (None, Order, True)


def test_a_deleted_row_discards_the_delivery_by_default():
    with background(post_save, sender=Order) as received:
        with transaction.atomic():
            order = Order.objects.create()
        order.delete()
        assert deliver() == {"discarded"}
    assert received == []
