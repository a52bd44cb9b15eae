"""The transaction that a test case opens around a test does not count as one of the code under test."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.db.models.signals import post_save
from django.test import TestCase

import outbox
from outbox.errors import NotInTransaction
from outbox.models import Event
from outbox.registry import registry
from outbox.testing import deliver
from tests.support.receivers import background, ordinary
from tests.testapp.models import Customer, Order
from tests.testapp.signals import order_status_changed
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db

PUBLISHING: dict[str, Any] = {
    "publish": lambda: outbox.publish("own.asked"),
    "publish_many": lambda: outbox.publish_many([{"topic": "own.asked"}]),
    "apublish": lambda: async_to_sync(outbox.apublish)("own.asked"),
    "actor": lambda: resize.send(7),
    "signal": lambda: order_status_changed.send(Order, order=None),
    "robust signal": lambda: order_status_changed.send_robust(Order, order=None),
    "background": lambda: outbox.send_background(post_save, sender=Order),
}


@pytest.mark.parametrize("publish", PUBLISHING.values(), ids=PUBLISHING)
def test_a_publish_without_an_own_transaction_is_refused_in_a_test_case(publish: Any) -> None:
    with pytest.raises(NotInTransaction, match="transaction"):
        publish()
    with pytest.raises(NotInTransaction, match="transaction"):
        publish()
    assert not Event.objects.exists()
    with transaction.atomic():
        publish()
    assert Event.objects.count() == 1


@pytest.mark.parametrize("publish", PUBLISHING.values(), ids=PUBLISHING)
def test_the_transaction_of_a_test_case_can_be_allowed(settings: Any, publish: Any) -> None:
    settings.OUTBOX = {"ALLOW_TEST_TRANSACTION": True}
    publish()
    assert Event.objects.count() == 1


def test_the_error_in_a_test_case_names_the_setting() -> None:
    with pytest.raises(NotInTransaction, match="ALLOW_TEST_TRANSACTION"):
        outbox.publish("own.asked")


@pytest.mark.django_db(transaction=True)
def test_outside_a_test_case_the_error_does_not_mention_tests(settings: Any) -> None:
    settings.OUTBOX = {"ALLOW_TEST_TRANSACTION": True}
    with pytest.raises(NotInTransaction) as refused:
        outbox.publish("own.asked")
    assert "TEST" not in str(refused.value)


def test_a_refused_send_calls_no_receiver_and_writes_nothing() -> None:
    def write(**arguments: Any) -> None:
        Customer.objects.create(name="written by a receiver")

    with ordinary(order_status_changed, answer=write) as called, pytest.raises(NotInTransaction):
        order_status_changed.send(Order, order=None)
    assert called == []
    assert not Customer.objects.exists()
    assert not Event.objects.exists()


def test_a_handler_that_publishes_is_refused_as_in_a_worker() -> None:
    @outbox.handler("own.asked", name="own_asked")
    def publish_again(event: Any) -> None:
        outbox.publish("own.answered")

    try:
        with transaction.atomic():
            outbox.publish("own.asked")
        with pytest.raises(NotInTransaction):
            deliver()
    finally:
        registry.remove("own_asked")


def test_a_save_needs_no_transaction_in_a_test_case() -> None:
    with background(post_save, sender=Order):
        Order.objects.create()
    assert Event.objects.count() == 1


class OwnTransactionTests(TestCase):
    """Django's own test case, whose class opens a transaction too."""

    @classmethod
    def setUpTestData(cls) -> None:
        with pytest.raises(NotInTransaction):
            outbox.publish("own.asked")
        with transaction.atomic():
            outbox.publish("own.asked")

    def test_data_of_the_class_is_published_in_a_transaction(self) -> None:
        assert Event.objects.count() == 1
        with pytest.raises(NotInTransaction):
            outbox.publish("own.asked")
