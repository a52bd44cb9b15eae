"""What `only_when_field_changed` takes for the old value, on real rows and with real commits."""

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
    seat = models.CharField(max_length=20, null=True, unique=True)  # noqa: DJ001 - several have none
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


class Heard(list[dict[str, Any]]):
    """The changes that a receiver got, one entry a call."""

    def take(self) -> list[dict[str, Any]]:
        taken = list(self)
        self.clear()
        return taken


@contextmanager
def listening(signal: Any, condition: Any = CHANGED, sender: Any = Ticket) -> Iterator[Heard]:
    heard = Heard()

    @condition
    def receiver(changes: dict[str, Any], **kwargs: Any) -> None:
        heard.append(changes)

    signal.connect(receiver, sender=sender)
    try:
        yield heard
    finally:
        signal.disconnect(receiver, sender=sender)


@pytest.fixture(params=[pre_save, post_save], ids=["pre_save", "post_save"])
def heard(request: pytest.FixtureRequest) -> Iterator[Heard]:
    with listening(request.param) as found:
        yield found


@pytest.fixture
def after() -> Iterator[Heard]:
    with listening(post_save) as found:
        yield found


def make(**fields: Any) -> Ticket:
    return Ticket.objects.get(pk=Ticket.objects.create(**fields).pk)


def test_a_changed_field_is_heard_with_its_old_and_new_value(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    ticket.status = "paid"
    ticket.save()
    assert heard.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert heard == []


def test_the_old_value_costs_no_query(heard: Heard) -> None:
    ticket = make()
    with CaptureQueriesContext(
        connection,
    ) as without:
        ticket.save()
    ticket.status = "paid"
    with CaptureQueriesContext(connection) as queries:
        ticket.save()
    assert len(queries) == len(without)


def test_a_new_instance_has_changed_from_none(heard: Heard) -> None:
    Ticket.objects.create(price=5)
    assert heard == [{"status": (None, "new"), "price": (None, 5), "labels": (None, [])}]


def test_an_unrelated_change_is_not_heard(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    ticket.seat = "4a"
    ticket.save()
    assert heard == []


def test_a_value_of_another_type_is_compared_as_the_column_takes_it(heard: Heard) -> None:
    ticket = make(price=Decimal("5.00"))
    heard.clear()
    ticket.price = "5.00"  # type: ignore[assignment]
    ticket.save()
    assert heard == []
    ticket.price = "6.00"  # type: ignore[assignment]
    ticket.save()
    assert heard == [{"price": (Decimal("5.00"), Decimal("6.00"))}]


def test_a_mutable_value_changed_in_place_is_heard(heard: Heard) -> None:
    ticket = make(labels=["a"])
    heard.clear()
    ticket.labels.append("b")
    ticket.save()
    assert heard == [{"labels": (["a"], ["a", "b"])}]


def test_a_foreign_key_is_compared_by_its_primary_key(heard: Heard) -> None:
    ticket, other = make(), make()
    heard.clear()
    ticket.owner = other
    ticket.save()
    assert heard == [{"owner": (None, other.pk)}]


def test_update_fields_moves_only_what_it_writes(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    ticket.status, ticket.price = "paid", Decimal(9)
    ticket.save(update_fields=["price"])
    assert heard.take() == [{"price": (Decimal(0), Decimal(9))}]
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_a_refresh_moves_the_old_value(heard: Heard) -> None:
    ticket = make()
    Ticket.objects.filter(pk=ticket.pk).update(status="paid")
    ticket.refresh_from_db()
    heard.clear()
    ticket.save()
    assert heard == []
    ticket.status = "new"
    ticket.save()
    assert heard == [{"status": ("paid", "new")}]


def test_a_refresh_of_other_fields_leaves_an_unsaved_change_a_change(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    ticket.status = "paid"
    ticket.refresh_from_db(fields=["seat"])
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_a_refresh_of_a_copy_moves_the_old_value(heard: Heard) -> None:
    ticket = copy.copy(make())
    Ticket.objects.filter(pk=ticket.pk).update(status="paid")
    ticket.refresh_from_db()
    heard.clear()
    ticket.save()
    assert heard == []


def test_a_refresh_of_a_bare_instance_is_a_first_look(heard: Heard) -> None:
    ticket = Ticket(pk=make().pk)
    ticket.refresh_from_db()
    heard.clear()
    ticket.status = "paid"
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_a_deferred_field_is_not_fetched_and_not_a_change(heard: Heard) -> None:
    pk = make().pk
    heard.clear()
    with CaptureQueriesContext(connection) as queries:
        ticket = Ticket.objects.only("seat").get(pk=pk)
        ticket.seat = "4a"
        ticket.save()
    assert heard == []
    assert not [
        query for query in queries if query["sql"].startswith("SELECT") and '"status"' in query["sql"]
    ]


def test_a_deferred_field_that_was_read_has_an_old_value(heard: Heard) -> None:
    ticket = Ticket.objects.defer("status").get(pk=make().pk)
    heard.clear()
    assert ticket.status == "new"
    ticket.status = "paid"
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_a_deferred_field_that_was_only_assigned_changes_from_unknown(heard: Heard) -> None:
    ticket = Ticket.objects.defer("status").get(pk=make().pk)
    heard.clear()
    ticket.status = "paid"
    ticket.save()
    assert heard.take() == [{"status": (UNKNOWN, "paid")}]
    ticket.save()
    assert heard == []


def test_an_expression_changes_to_what_the_database_made_of_it(after: Heard) -> None:
    ticket = make(price=Decimal(1))
    after.clear()
    ticket.price = F("price") + 1  # type: ignore[assignment]
    ticket.save()
    [changes] = after.take()
    assert changes["price"][0] == 1
    assert changes["price"][1] in (UNKNOWN, 2)  # Django 6 reads it back
    ticket.refresh_from_db()
    ticket.save()
    assert after == []


def test_a_value_that_only_the_save_makes_is_seen_after_it() -> None:
    ticket = make()
    before = ticket.touched
    with listening(post_save, TOUCHED) as heard:
        ticket.save()
    assert heard == [{"touched": (before, ticket.touched)}]


def test_a_rolled_back_save_leaves_the_old_value(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        raise IntegrityError
    assert heard.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert heard.take() == [{"status": ("new", "paid")}]
    ticket.save()
    assert heard == []


def test_a_rolled_back_savepoint_leaves_the_value_of_the_transaction_around_it(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    with transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        with pytest.raises(IntegrityError), transaction.atomic():
            ticket.status = "sent"
            ticket.save()
            raise IntegrityError
        ticket.status = "lost"
        ticket.save()
    assert [each["status"] for each in heard.take()] == [("new", "paid"), ("paid", "sent"), ("paid", "lost")]
    ticket.status = "new"
    ticket.save()
    assert heard == [{"status": ("lost", "new")}]


def test_a_released_savepoint_goes_with_the_transaction_around_it(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        with transaction.atomic():
            ticket.status = "paid"
            ticket.save()
        with transaction.atomic():
            ticket.status = "sent"
            ticket.save()
        raise IntegrityError
    heard.clear()
    ticket.save()
    assert heard == [{"status": ("new", "sent")}]


def test_a_rolled_back_creation_leaves_a_new_instance(heard: Heard) -> None:
    ticket = Ticket(status="paid")
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.save()
        raise IntegrityError
    heard.clear()
    ticket.save()
    assert heard[0]["status"] == (None, "paid")


def test_a_rolled_back_refresh_leaves_the_old_value(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    with pytest.raises(IntegrityError), transaction.atomic():
        Ticket.objects.filter(pk=ticket.pk).update(status="paid")
        ticket.refresh_from_db()
        raise IntegrityError
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_an_instance_loaded_in_a_rolled_back_transaction_keeps_what_it_loaded(heard: Heard) -> None:
    pk = make().pk
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket = Ticket.objects.get(pk=pk)
        ticket.status = "paid"
        ticket.save()
        raise IntegrityError
    heard.clear()
    ticket.status = "lost"
    ticket.save()
    assert heard == [{"status": ("new", "lost")}]


def test_a_failed_save_leaves_the_old_value(heard: Heard) -> None:
    make(seat="4a")
    ticket = make(seat="4b")
    ticket.seat, ticket.status = "4a", "paid"
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.save()
    heard.clear()
    ticket.seat = "4c"
    ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_several_receivers_of_one_save_hear_the_same(after: Heard) -> None:
    ticket = make()
    with listening(post_save) as second, listening(post_save) as third:
        after.clear()
        ticket.status = "paid"
        ticket.save()
    assert after == second == third == [{"status": ("new", "paid")}]


@pytest.mark.parametrize("update_fields", [None, ["price"]], ids=["whole", "update_fields"])
def test_a_receiver_that_saves_again_takes_no_change_from_later_receivers(
    after: Heard, update_fields: list[str] | None
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


def test_a_pre_save_receiver_that_reads_the_row_changes_nothing(after: Heard) -> None:
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


def test_a_clone_is_a_new_instance(after: Heard) -> None:
    ticket = make(status="paid")
    after.clear()
    ticket.pk = ticket.id = ticket.ticketbase_ptr_id = None
    ticket._state.adding = True
    ticket.save()
    assert after[0]["status"] == (None, "paid")


def test_a_deleted_instance_saved_again_is_new(after: Heard) -> None:
    ticket = make()
    ticket.delete()
    after.clear()
    ticket.save()
    assert after[0]["status"] == (None, "new")


def test_an_existing_row_overwritten_blindly_changes_from_unknown(after: Heard) -> None:
    pk = make().pk
    after.clear()
    Ticket(pk=pk, status="paid").save()
    assert after[0]["status"] == (UNKNOWN, "paid")


def test_bulk_created_instances_know_what_was_inserted(heard: Heard) -> None:
    [base] = TicketBase.objects.bulk_create([TicketBase(status="paid")])
    with listening(post_save, BASE_CHANGED, sender=TicketBase) as found:
        base.save()
        assert found == []
        base.status = "lost"
        base.save()
    assert found == [{"status": ("paid", "lost")}]


def test_a_copy_and_a_pickle_remember_the_old_value(heard: Heard) -> None:
    for duplicate in (copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        ticket = duplicate(make())
        heard.clear()
        ticket.status = "paid"
        ticket.save()
        assert heard == [{"status": ("new", "paid")}]


def test_a_copy_made_in_a_transaction_follows_its_rollback(heard: Heard) -> None:
    ticket = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        ticket.status = "paid"
        ticket.save()
        duplicate = copy.copy(ticket)
        raise IntegrityError
    heard.clear()
    duplicate.save()
    assert heard == [{"status": ("new", "paid")}]


def test_a_proxy_is_tracked_with_its_model() -> None:
    ticket = TicketProxy.objects.get(pk=make().pk)
    with listening(post_save, sender=TicketProxy) as heard:
        ticket.status = "paid"
        ticket.save()
    assert heard == [{"status": ("new", "paid")}]


def test_loading_a_fixture_is_no_change(heard: Heard) -> None:
    ticket = make()
    heard.clear()
    text = serializers.serialize("json", [ticket.ticketbase_ptr, ticket])
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    assert heard == []


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
    with listening(post_save, only_when_field_changed("seat")) as heard:
        ticket = make(seat="2b")
        heard.clear()
        ticket.seat = "2c"
        ticket.save()
        assert heard.take() == [{"seat": ("2b", "2c")}]
        ticket_before.save()
        assert heard == [{"seat": (UNKNOWN, "1a")}]


def test_a_field_that_the_model_lacks_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RegistrationError, match="did you mean 'status'"):
        only_when_field_changed("statsu", model=Ticket)
    with pytest.raises(RegistrationError, match="did you mean 'status'"):
        only_when_field_changed("statsu").bind(Ticket)
