"""The old and new values of `only_when_field_changed`, on real rows and with real commits."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from django.core import serializers
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F
from django.db.models.signals import post_save, pre_save
from django.test.utils import CaptureQueriesContext

from outbox.conditions import UNKNOWN, only_for_models, only_when_field_changed, signal_condition
from outbox.errors import RegistrationError

pytestmark = pytest.mark.django_db(transaction=True)


class TicketBase(models.Model):
    status = models.CharField(max_length=20, default="new")
    owner = models.ForeignKey("self", null=True, on_delete=models.CASCADE)

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return self.status


class Ticket(TicketBase):
    price = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    seat = models.CharField(max_length=20, null=True, unique=True)  # noqa: DJ001 - several rows have no seat
    labels = models.JSONField(default=list)
    touched = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "testapp"


class TicketProxy(Ticket):
    class Meta:
        app_label = "testapp"
        proxy = True


CHANGED = only_when_field_changed("status", "price", "labels", "owner", model=Ticket)
TOUCHED = only_when_field_changed("touched", model=Ticket)
BASE_CHANGED = only_when_field_changed("status", model=TicketBase)


class ReceivedChanges(list[dict[str, Any]]):
    """The changes that a receiver got, one entry per call."""

    def take(self) -> list[dict[str, Any]]:
        taken = list(self)
        self.clear()
        return taken


@contextmanager
def listening(signal: Any, condition: Any = CHANGED, sender: Any = Ticket) -> Iterator[ReceivedChanges]:
    received = ReceivedChanges()

    @condition
    def receiver(changes: dict[str, Any], **kwargs: Any) -> None:
        received.append(changes)

    signal.connect(receiver, sender=sender)
    try:
        yield received
    finally:
        signal.disconnect(receiver, sender=sender)


@pytest.fixture(params=[pre_save, post_save], ids=["pre_save", "post_save"])
def received(request: pytest.FixtureRequest) -> Iterator[ReceivedChanges]:
    with listening(request.param) as found:
        yield found


@pytest.fixture
def after() -> Iterator[ReceivedChanges]:
    with listening(post_save) as found:
        yield found


def make(**fields: Any) -> Ticket:
    return Ticket.objects.get(pk=Ticket.objects.create(**fields).pk)


def test_a_changed_field_is_received_with_its_old_and_new_value(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    ticket.status = "paid"
    ticket.save()
    assert received.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert received == []


def test_the_old_value_costs_no_query(received: ReceivedChanges) -> None:
    ticket = make()
    with CaptureQueriesContext(connection) as without_change:
        ticket.save()
    ticket.status = "paid"
    with CaptureQueriesContext(connection) as queries:
        ticket.save()
    assert len(queries) == len(without_change)


def test_a_new_instance_has_changed_from_none(received: ReceivedChanges) -> None:
    Ticket.objects.create(price=5)
    assert received == [{"status": (None, "new"), "price": (None, 5), "labels": (None, [])}]


def test_an_unrelated_change_is_not_received(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    ticket.seat = "4a"
    ticket.save()
    assert received == []


def test_a_value_of_another_type_is_converted_before_the_comparison(received: ReceivedChanges) -> None:
    ticket = make(price=Decimal("5.00"))
    received.clear()
    ticket.price = "5.00"  # type: ignore[assignment]
    ticket.save()
    assert received == []
    ticket.price = "6.00"  # type: ignore[assignment]
    ticket.save()
    assert received == [{"price": (Decimal("5.00"), Decimal("6.00"))}]


def test_a_mutable_value_changed_in_place_is_received(received: ReceivedChanges) -> None:
    ticket = make(labels=["a"])
    received.clear()
    ticket.labels.append("b")
    ticket.save()
    assert received == [{"labels": (["a"], ["a", "b"])}]


def test_a_foreign_key_is_compared_by_its_primary_key(received: ReceivedChanges) -> None:
    ticket, other = make(), make()
    received.clear()
    ticket.owner = other
    ticket.save()
    assert received == [{"owner": (None, other.pk)}]


def test_update_fields_replaces_only_the_old_values_it_writes(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    ticket.status, ticket.price = "paid", Decimal(9)
    ticket.save(update_fields=["price"])
    assert received.take() == [{"price": (Decimal(0), Decimal(9))}]
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_a_refresh_replaces_the_old_value(received: ReceivedChanges) -> None:
    ticket = make()
    Ticket.objects.filter(pk=ticket.pk).update(status="paid")
    ticket.refresh_from_db()
    received.clear()
    ticket.save()
    assert received == []
    ticket.status = "new"
    ticket.save()
    assert received == [{"status": ("paid", "new")}]


def test_a_refresh_of_other_fields_keeps_an_unsaved_change(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    ticket.status = "paid"
    ticket.refresh_from_db(fields=["seat"])
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_a_refresh_of_a_copy_replaces_the_old_value(received: ReceivedChanges) -> None:
    ticket = copy.copy(make())
    Ticket.objects.filter(pk=ticket.pk).update(status="paid")
    ticket.refresh_from_db()
    received.clear()
    ticket.save()
    assert received == []


def test_a_refresh_of_an_unread_instance_sets_the_old_value(received: ReceivedChanges) -> None:
    ticket = Ticket(pk=make().pk)
    ticket.refresh_from_db()
    received.clear()
    ticket.status = "paid"
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_a_deferred_field_is_not_fetched_and_not_a_change(received: ReceivedChanges) -> None:
    pk = make().pk
    received.clear()
    with CaptureQueriesContext(connection) as queries:
        ticket = Ticket.objects.only("seat").get(pk=pk)
        ticket.seat = "4a"
        ticket.save()
    assert received == []
    assert not [
        query for query in queries if query["sql"].startswith("SELECT") and '"status"' in query["sql"]
    ]


def test_a_deferred_field_that_was_read_has_an_old_value(received: ReceivedChanges) -> None:
    ticket = Ticket.objects.defer("status").get(pk=make().pk)
    received.clear()
    assert ticket.status == "new"
    ticket.status = "paid"
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_a_deferred_field_that_was_only_assigned_changes_from_unknown(received: ReceivedChanges) -> None:
    ticket = Ticket.objects.defer("status").get(pk=make().pk)
    received.clear()
    ticket.status = "paid"
    ticket.save()
    assert received.take() == [{"status": (UNKNOWN, "paid")}]
    ticket.save()
    assert received == []


def test_an_expression_changes_to_the_result_or_to_unknown(after: ReceivedChanges) -> None:
    ticket = make(price=Decimal(1))
    after.clear()
    ticket.price = F("price") + 1  # type: ignore[assignment]
    ticket.save()
    [changes] = after.take()
    assert changes["price"][0] == 1
    assert changes["price"][1] in (UNKNOWN, 2)  # Django 6 reads the result back
    ticket.refresh_from_db()
    ticket.save()
    assert after == []


def test_a_value_set_by_the_save_is_received_after_the_save() -> None:
    ticket = make()
    before = ticket.touched
    with listening(post_save, TOUCHED) as received:
        ticket.save()
    assert received == [{"touched": (before, ticket.touched)}]


def test_a_rolled_back_save_keeps_the_old_value(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        raise IntegrityError
    assert received.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert received.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert received == []


def test_a_rolled_back_savepoint_restores_the_value_of_the_outer_transaction(
    received: ReceivedChanges,
) -> None:
    ticket = make()
    received.clear()
    with transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        with pytest.raises(IntegrityError), transaction.atomic():
            ticket.status = "sent"
            ticket.save()
            raise IntegrityError
        ticket.status = "lost"
        ticket.save()
    assert [each["status"] for each in received.take()] == [
        ("new", "paid"),
        ("paid", "sent"),
        ("paid", "lost"),
    ]
    ticket.status = "new"
    ticket.save()
    assert received == [{"status": ("lost", "new")}]


def test_a_released_savepoint_rolls_back_with_the_outer_transaction(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        with transaction.atomic():
            ticket.status = "paid"
            ticket.save()
        with transaction.atomic():
            ticket.status = "sent"
            ticket.save()
        raise IntegrityError
    received.clear()
    ticket.save()
    assert received == [{"status": ("new", "sent")}]


def test_a_rolled_back_creation_leaves_a_new_instance(received: ReceivedChanges) -> None:
    ticket = Ticket(status="paid")
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.save()
        raise IntegrityError
    received.clear()
    ticket.save()
    assert received[0]["status"] == (None, "paid")


def test_a_rolled_back_refresh_keeps_the_old_value(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        Ticket.objects.filter(pk=ticket.pk).update(status="paid")
        ticket.refresh_from_db()
        raise IntegrityError
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_an_instance_loaded_in_a_rolled_back_transaction_keeps_its_values(received: ReceivedChanges) -> None:
    pk = make().pk
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket = Ticket.objects.get(pk=pk)
        ticket.status = "paid"
        ticket.save()
        raise IntegrityError
    received.clear()
    ticket.status = "lost"
    ticket.save()
    assert received == [{"status": ("new", "lost")}]


def test_a_failed_save_keeps_the_old_value(received: ReceivedChanges) -> None:
    make(seat="4a")
    ticket = make(seat="4b")
    ticket.seat, ticket.status = "4a", "paid"
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.save()
    received.clear()
    ticket.seat = "4c"
    ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_several_receivers_of_one_save_get_the_same_changes(after: ReceivedChanges) -> None:
    ticket = make()
    with listening(post_save) as second, listening(post_save) as third:
        after.clear()
        ticket.status = "paid"
        ticket.save()
    assert after == second == third == [{"status": ("new", "paid")}]


@pytest.mark.parametrize("update_fields", [None, ["price"]], ids=["whole", "update_fields"])
def test_a_receiver_that_saves_again_hides_no_change_from_later_receivers(
    after: ReceivedChanges, update_fields: list[str] | None
) -> None:
    def save_again(instance: Ticket, **kwargs: Any) -> None:
        if instance.price == 0:
            instance.price = Decimal(7)
            instance.save(update_fields=update_fields)

    ticket = make()
    post_save.connect(save_again, sender=Ticket)
    try:
        with listening(post_save) as later:
            ticket.status = "paid"
            after.clear()
            ticket.save()
    finally:
        post_save.disconnect(save_again, sender=Ticket)
    outer, inner = {"status": ("new", "paid")}, {"price": (Decimal(0), Decimal(7))}
    assert list(after) == [outer, inner]
    assert list(later) == [inner, outer]


def test_a_pre_save_receiver_that_reads_the_row_keeps_the_old_value(after: ReceivedChanges) -> None:
    def read_row(instance: Ticket, **kwargs: Any) -> None:
        if instance.pk:
            assert Ticket.objects.get(pk=instance.pk)._state.db == "default"

    ticket = make()
    after.clear()
    pre_save.connect(read_row, sender=Ticket)
    try:
        ticket.status = "paid"
        ticket.save()
    finally:
        pre_save.disconnect(read_row, sender=Ticket)
    assert after == [{"status": ("new", "paid")}]


def test_a_clone_is_a_new_instance(after: ReceivedChanges) -> None:
    ticket = make(status="paid")
    after.clear()
    ticket.pk = ticket.id = ticket.ticketbase_ptr_id = None
    ticket._state.adding = True
    ticket.save()
    assert after[0]["status"] == (None, "paid")


def test_a_deleted_instance_that_is_saved_again_is_new(after: ReceivedChanges) -> None:
    ticket = make()
    ticket.delete()
    after.clear()
    ticket.save()
    assert after[0]["status"] == (None, "new")


def test_a_row_overwritten_without_a_read_changes_from_unknown(after: ReceivedChanges) -> None:
    pk = make().pk
    after.clear()
    Ticket(pk=pk, status="paid").save()
    assert after[0]["status"] == (UNKNOWN, "paid")


def test_bulk_created_instances_have_the_inserted_old_values(received: ReceivedChanges) -> None:
    [base] = TicketBase.objects.bulk_create([TicketBase(status="paid")])
    with listening(post_save, BASE_CHANGED, sender=TicketBase) as found:
        base.save()
        assert found == []
        base.status = "lost"
        base.save()
    assert found == [{"status": ("paid", "lost")}]


def test_a_copy_and_a_pickle_keep_the_old_value(received: ReceivedChanges) -> None:
    for duplicate in (copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        ticket = duplicate(make())
        received.clear()
        ticket.status = "paid"
        ticket.save()
        assert received == [{"status": ("new", "paid")}]


def test_a_rollback_restores_the_old_value_of_a_copy(received: ReceivedChanges) -> None:
    ticket = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        duplicate = copy.copy(ticket)
        raise IntegrityError
    received.clear()
    duplicate.save()
    assert received == [{"status": ("new", "paid")}]


def test_a_proxy_is_tracked_with_its_model() -> None:
    ticket = TicketProxy.objects.get(pk=make().pk)
    with listening(post_save, sender=TicketProxy) as received:
        ticket.status = "paid"
        ticket.save()
    assert received == [{"status": ("new", "paid")}]


def test_loading_a_fixture_is_no_change(received: ReceivedChanges) -> None:
    ticket = make()
    received.clear()
    text = serializers.serialize("json", [ticket.ticketbase_ptr, ticket])
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    assert received == []


def test_conditions_combine() -> None:
    dear = signal_condition(lambda instance: instance.price > 5)
    ticket = make(price=9)
    first, second = only_for_models(Ticket) & CHANGED & ~dear, CHANGED & dear
    with listening(post_save, first) as cheap, listening(post_save, second, sender=None) as both:
        ticket.status = "paid"
        ticket.save()
    assert cheap == []
    assert both == [{"status": ("new", "paid")}]


def test_a_bare_decorator_tracks_every_model_with_the_field() -> None:
    ticket_before = make(seat="1a")
    with listening(post_save, only_when_field_changed("seat")) as received:
        ticket = make(seat="2b")
        received.clear()
        ticket.seat = "2c"
        ticket.save()
        assert received.take() == [{"seat": ("2b", "2c")}]
        ticket_before.save()
        assert received == [{"seat": (UNKNOWN, "1a")}]


def test_a_field_that_the_model_lacks_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RegistrationError, match="did you mean 'status'"):
        only_when_field_changed("statsu", model=Ticket)
    with pytest.raises(RegistrationError, match="did you mean 'status'"):
        only_when_field_changed("statsu").bind(Ticket)
