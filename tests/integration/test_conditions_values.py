"""Conditions on values that the database computes or that peers fetch, and conditions in the wrong place."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
from django.db import models
from django.db.models import F
from django.db.models.signals import post_save, pre_save

import outbox
from outbox.conditions import UNKNOWN, only_for_models, only_when_field_changed, signal_condition
from outbox.errors import RegistrationError
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from tests.testapp.models import Order

pytestmark = pytest.mark.django_db(transaction=True)


class Invoice(models.Model):
    quantity = models.IntegerField(default=1)
    doubled = models.GeneratedField(
        expression=F("quantity") * 2, output_field=models.IntegerField(), db_persist=True
    )
    state = models.CharField(max_length=20, default="new")
    comment = models.CharField(max_length=20, default="none")

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return self.state


STATE_CHANGED = only_when_field_changed("state", "comment", model=Invoice)


@contextmanager
def listening(condition: Any, signal: Any = post_save) -> Iterator[list[Any]]:
    received: list[Any] = []

    @condition
    def receiver(changes: dict[str, Any], **kwargs: Any) -> None:
        received.append(changes)

    signal.connect(receiver, sender=Invoice)
    try:
        yield received
    finally:
        signal.disconnect(receiver, sender=Invoice)


@pytest.fixture
def declared() -> Iterator[None]:
    yield
    unsubscribe("conditioned")
    if "conditioned" in registry.handlers:
        registry.remove("conditioned")


# ---------------------------------------------------------------- generated fields


@pytest.mark.parametrize(
    "subscribe",
    [
        lambda: only_when_field_changed("state", "doubled", model=Invoice),
        lambda: only_when_field_changed("doubled").bind(Invoice),
        lambda: (only_for_models(Invoice, Order) & only_when_field_changed("doubled", "status")).bind(),
    ],
    ids=["model", "sender", "several models"],
)
def test_a_generated_field_is_refused_with_the_fields_to_name(subscribe: Any) -> None:
    with pytest.raises(RegistrationError, match=r"Invoice\.doubled.*quantity"):
        subscribe()


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_a_generated_field_of_an_unnamed_model_counts_as_changed(signal: Any) -> None:
    with listening(only_when_field_changed("doubled"), signal) as received:
        invoice = Invoice.objects.create()
        received.clear()
        invoice.quantity = 2
        invoice.save()
        invoice.save(update_fields=["quantity"])
    assert received == [{"doubled": (UNKNOWN, UNKNOWN)}] * 2


# ---------------------------------------------------------------- fetched peers


class PeersTogether:
    """Django 6.1's FETCH_PEERS, for older versions: one query sets the values of all peers."""

    track_peers = True

    def fetch(self, fetcher: Any, instance: models.Model) -> None:
        attname = fetcher.field.attname
        found = dict(Invoice.objects.values_list("pk", attname))
        for reference in instance._state.peers:
            peer = reference()
            if attname not in vars(peer):
                setattr(peer, attname, found[peer.pk])


def deferred_peers() -> list[Invoice]:
    """Return instances that lack their comment, and read it for all of them."""
    if hasattr(models, "FETCH_PEERS"):
        return list(Invoice.objects.defer("comment").fetch_mode(models.FETCH_PEERS).order_by("pk"))
    found = list(Invoice.objects.defer("comment").order_by("pk"))
    for one in found:
        one._state.peers = tuple(map(weakref.ref, found))
        one._state.fetch_mode = PeersTogether()
    return found


def read_comment(invoice: Invoice) -> str:
    if hasattr(models, "FETCH_PEERS"):
        return invoice.comment
    invoice._state.fetch_mode.fetch(Invoice.__dict__["comment"], invoice)
    return invoice.comment


def test_a_peer_that_was_fetched_is_unchanged() -> None:
    for number in range(3):
        Invoice.objects.create(comment=str(number))
    with listening(STATE_CHANGED) as received:
        first, second, third = deferred_peers()
        assert read_comment(first) == "0"
        assert vars(third)["comment"] == "2"
        for invoice in (first, second, third):
            invoice.save()
        assert received == []
        second.comment = "changed"
        second.save()
    assert received == [{"comment": ("1", "changed")}]


def test_a_deferred_field_that_was_assigned_stays_unknown_when_its_peers_are_fetched() -> None:
    for number in range(3):
        Invoice.objects.create(comment=str(number))
    with listening(STATE_CHANGED) as received:
        first, second, _ = deferred_peers()
        second.comment = "assigned"
        read_comment(first)
        second.save()
    assert received == [{"comment": (UNKNOWN, "assigned")}]


def test_an_instance_with_peers_is_pickled() -> None:
    Invoice.objects.create(comment="a")
    Invoice.objects.create(comment="b")
    first, _second = deferred_peers()
    if not hasattr(models, "FETCH_PEERS"):
        del first._state.fetch_mode
    copied = pickle.loads(pickle.dumps(first))
    assert copied == first


# ---------------------------------------------------------------- the place of a condition


@signal_condition
def never(**kwargs: Any) -> bool:
    return False


@pytest.mark.parametrize(
    "decorate",
    [
        outbox.receiver(post_save, sender=Order, name="conditioned"),
        outbox.handler("conditions.placed", name="conditioned"),
    ],
    ids=["receiver", "handler"],
)
def test_a_condition_above_a_durable_decorator_is_refused(decorate: Any, declared: None) -> None:
    with pytest.raises(RegistrationError, match=r"'conditioned'.*below"):

        @never
        @decorate
        def receive(**kwargs: Any) -> None: ...


def test_a_condition_below_another_decorator_is_refused(declared: None) -> None:
    def other(function: Any) -> Any:
        @wraps(function)
        def call(**kwargs: Any) -> Any:
            return function(**kwargs)

        return call

    with pytest.raises(RegistrationError, match="directly below"):

        @outbox.receiver(post_save, sender=Order, name="conditioned")
        @other
        @never
        def receive(**kwargs: Any) -> None: ...


def test_a_condition_on_a_handler_of_topics_is_refused(declared: None) -> None:
    with pytest.raises(RegistrationError, match=r"condition.*@receiver"):

        @outbox.handler("conditions.placed", name="conditioned")
        @never
        def handle(event: Any) -> None: ...
