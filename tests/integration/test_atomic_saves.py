"""A save of a model with a background receiver commits the row and the event together, or neither."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.core import management, serializers
from django.db import connection, connections, models, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

import outbox
from outbox.errors import NotInTransaction, PayloadTooLarge
from outbox.models import Event
from outbox.signals.atomic_saves import is_atomic
from outbox.testing import CapturedEvents
from tests.support.receivers import background, ordinary
from tests.testapp.models import Basket, Customer, Line, Order, Product, ProductBase, Tag

pytestmark = pytest.mark.django_db(transaction=True)


class Note(models.Model):
    """An abstract model."""

    text = models.CharField(max_length=20)

    class Meta:
        abstract = True
        app_label = "testapp"

    def __str__(self) -> str:
        return self.text


class Letter(Note):
    class Meta:
        app_label = "testapp"


class OrderProxy(Order):
    class Meta:
        app_label = "testapp"
        proxy = True


class Careful(models.Model):
    """A model that overrides both methods of a save."""

    name = models.CharField(max_length=20)
    calls: ClassVar[list[str]] = []

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("save")
        super().save(*args, **kwargs)

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("save_base")
        super().save_base(*args, **kwargs)


@pytest.fixture(params=[post_save, pre_save], ids=["post_save", "pre_save"])
def subscribed(request: pytest.FixtureRequest) -> Iterator[CapturedEvents]:
    with background(request.param, sender=Order):
        yield CapturedEvents()


def fail(**arguments: Any) -> None:
    raise ValueError("refused by a receiver")


def awaited(method: Any, **arguments: Any) -> None:
    async def call() -> None:
        await method(**arguments)

    async_to_sync(call)()


SAVES: dict[str, Any] = {
    "save": lambda: Order(note="a").save(),
    "create": lambda: Order.objects.create(note="a"),
    "get_or_create": lambda: Order.objects.get_or_create(note="a"),
    "update_or_create": lambda: Order.objects.update_or_create(note="a"),
    "asave": lambda: awaited(Order(note="a").asave),
    "acreate": lambda: awaited(Order.objects.acreate, note="a"),
    "aget_or_create": lambda: awaited(Order.objects.aget_or_create, note="a"),
    "aupdate_or_create": lambda: awaited(Order.objects.aupdate_or_create, note="a"),
    "save_base": lambda: Order(note="a").save_base(),
    "unbound save_base": lambda: models.Model.save_base(Order(note="a"), raw=True),
    "related manager": lambda: Customer.objects.create(name="Ada").order_set.create(note="a"),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_a_save_outside_a_transaction_commits_row_and_event(save: Any, subscribed: CapturedEvents) -> None:
    save()
    assert Order.objects.filter(note="a").count() == 1
    assert len(subscribed) == 1


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_an_error_of_a_receiver_leaves_neither_row_nor_event(save: Any, subscribed: CapturedEvents) -> None:
    with ordinary(post_save, sender=Order, answer=fail), pytest.raises(ValueError, match="refused"):
        save()
    assert not Order.objects.exists()
    assert subscribed.topics == []


def test_an_event_that_is_refused_leaves_no_row(settings: Any, subscribed: CapturedEvents) -> None:
    settings.OUTBOX = {"MAX_PAYLOAD_BYTES": 10}
    with pytest.raises(PayloadTooLarge):
        Order.objects.create()
    assert not Order.objects.exists()


def test_an_update_that_a_receiver_refuses_keeps_the_old_row(subscribed: CapturedEvents) -> None:
    order = Order.objects.create(note="old")
    order.note = "new"
    with ordinary(post_save, sender=Order, answer=fail), pytest.raises(ValueError, match="refused"):
        order.save()
    assert Order.objects.get().note == "old"
    order.save()
    assert Order.objects.get().note == "new"


def test_a_new_instance_can_be_saved_again_after_an_error(subscribed: CapturedEvents) -> None:
    order = Order(note="a")
    with ordinary(post_save, sender=Order, answer=fail), pytest.raises(ValueError, match="refused"):
        order.save()
    order.save()
    assert Order.objects.get() == order
    assert len(subscribed) == 1


def test_an_error_that_is_swallowed_in_a_transaction_leaves_neither_row_nor_event(
    subscribed: CapturedEvents,
) -> None:
    with ordinary(post_save, sender=Order, answer=fail), transaction.atomic():
        try:
            Order.objects.create()
        except ValueError:
            logging.getLogger(__name__).debug("swallowed")
    assert not Order.objects.exists()
    assert subscribed.topics == []


def test_a_savepoint_of_the_caller_limits_the_rollback(subscribed: CapturedEvents) -> None:
    with transaction.atomic():
        Order.objects.create(note="kept")
        with (
            ordinary(post_save, sender=Order, answer=fail),
            pytest.raises(ValueError, match="refused"),
            transaction.atomic(),
        ):
            Order.objects.create(note="refused")
        assert Order.objects.get().note == "kept"
    assert len(subscribed) == 1


def test_a_loop_that_logs_errors_loses_no_event(subscribed: CapturedEvents) -> None:
    for number in range(3):
        Order.objects.create(note=str(number))
    assert (Order.objects.count(), len(subscribed)) == (3, 3)


# ---------------------------------------------------------------- fixtures


def test_a_loaded_object_commits_with_its_event(subscribed: CapturedEvents) -> None:
    text = serializers.serialize("json", [Order(pk=7, note="a")])
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    assert (Order.objects.get().pk, len(subscribed)) == (7, 1)


def test_loaddata_loads_rows_with_their_events(subscribed: CapturedEvents, tmp_path: Any) -> None:
    (tmp_path / "orders.json").write_text(serializers.serialize("json", [Order(pk=7), Order(pk=8)]))
    management.call_command("loaddata", tmp_path / "orders.json", verbosity=0)
    assert (Order.objects.count(), len(subscribed)) == (2, 2)


# ---------------------------------------------------------------- models


def test_a_receiver_of_all_senders_makes_every_save_atomic() -> None:
    with background(post_save), ordinary(post_save, sender=Customer, answer=fail):
        with pytest.raises(ValueError, match="refused"):
            Customer.objects.create(name="Ada")
        Tag.objects.create(name="red")
    assert (Customer.objects.count(), Tag.objects.count()) == (0, 1)
    assert [event.topic for event in Event.objects.all()] == ["post_save.testapp.tag"]


def test_a_condition_on_models_makes_only_their_saves_atomic() -> None:
    conditions = (outbox.only_for_models(Note), outbox.only_for_models("testapp.Letter"))
    for number, condition in enumerate(conditions, start=1):
        with background(post_save, when=condition):
            assert (is_atomic(Letter), is_atomic(Order), is_atomic(Customer)) == (True, False, False)
            Letter.objects.create(text="a")
        assert (Letter.objects.count(), Event.objects.count()) == (number, number)


def test_an_abstract_sender_stands_for_its_concrete_models() -> None:
    with background(post_save, sender=Note):

        class LaterLetter(Note):
            class Meta:
                app_label = "testapp"

        Letter.objects.create(text="a")
        with ordinary(post_save, sender=Letter, answer=fail), pytest.raises(ValueError, match="refused"):
            Letter.objects.create(text="b")
        assert is_atomic(LaterLetter)
    assert not is_atomic(LaterLetter)
    assert (Letter.objects.count(), Event.objects.count()) == (1, 1)


def test_a_proxy_is_a_sender_of_its_own_as_in_django() -> None:
    with background(post_save, sender=OrderProxy):
        assert (is_atomic(OrderProxy), is_atomic(Order)) == (True, False)
        Order.objects.create()
        OrderProxy.objects.create()
    assert [event.topic for event in Event.objects.all()] == ["post_save.testapp.orderproxy"]


def test_rows_of_parent_and_child_and_the_event_commit_together() -> None:
    with background(post_save, sender=Product):
        with ordinary(post_save, sender=Product, answer=fail), pytest.raises(ValueError, match="refused"):
            Product.objects.create(name="refused")
        assert not ProductBase.objects.exists()
        Product.objects.create(name="kept")
    assert (Product.objects.get().name, Event.objects.count()) == ("kept", 1)


def test_a_class_that_overrides_save_and_save_base_is_atomic() -> None:
    Careful.calls.clear()
    with background(post_save, sender=Careful):
        with ordinary(post_save, sender=Careful, answer=fail), pytest.raises(ValueError, match="refused"):
            Careful.objects.create(name="refused")
        Careful.objects.create(name="kept")
    assert Careful.calls == ["save", "save_base"] * 2
    assert (Careful.objects.get().name, Event.objects.count()) == ("kept", 1)


def test_a_model_without_a_durable_receiver_is_saved_as_before() -> None:
    with (
        background(post_save, sender=Order),
        ordinary(post_save, sender=Customer, answer=fail),
        pytest.raises(ValueError, match="refused"),
    ):
        Customer.objects.create(name="Ada")
    assert Customer.objects.exists()


def test_a_save_of_a_user_by_the_login_of_the_admin_is_published(client: Any) -> None:
    get_user_model().objects.create_superuser("ada", "ada@example.com", "secret")
    with background(post_save, sender=get_user_model()):
        data = {"username": "ada", "password": "secret", "next": reverse("admin:index")}
        assert client.post(reverse("admin:login"), data).status_code == 302
    assert Event.objects.count() == 1


def test_a_durable_block_in_a_receiver_is_refused(subscribed: CapturedEvents) -> None:
    def write(**arguments: Any) -> None:
        with transaction.atomic(durable=True):
            Tag.objects.create(name="red")

    with ordinary(post_save, sender=Order, answer=write), pytest.raises(RuntimeError, match="durable"):
        Order.objects.create()
    assert not Order.objects.exists()


# ---------------------------------------------------------------- other model signals


def test_a_deletion_commits_with_its_event() -> None:
    for signal in (pre_delete, post_delete):
        order = Order.objects.create()
        with background(signal, sender=Order):
            with ordinary(signal, sender=Order, answer=fail), pytest.raises(ValueError, match="refused"):
                order.delete()
            assert (Order.objects.count(), Event.objects.count()) == (1, 0)
            Order.objects.all().delete()
        assert (Order.objects.count(), Event.objects.count()) == (0, 1)
        Event.objects.all().delete()


def test_a_change_of_a_many_to_many_relation_commits_with_its_events() -> None:
    line = Line.objects.create(basket=Basket.objects.create(name="b"), sku="s")
    red, blue = (Tag.objects.create(name=name) for name in ("red", "blue"))
    with background(m2m_changed, sender=Line.tags.through):
        line.tags.add(red)
        line.tags.set([blue])
        line.tags.clear()
    actions = [event.payload["arguments"]["action"] for event in Event.objects.order_by("pk")]
    assert actions == [
        "pre_add",
        "post_add",
        "pre_remove",
        "post_remove",
        "pre_add",
        "post_add",
        "pre_clear",
        "post_clear",
    ]


# ---------------------------------------------------------------- the setting


def test_with_atomic_saves_off_a_save_outside_a_transaction_raises_as_in_django(
    settings: Any, subscribed: CapturedEvents
) -> None:
    settings.OUTBOX = {"ATOMIC_SAVES": False}
    with pytest.raises(NotInTransaction):
        Order.objects.create()
    with transaction.atomic():
        Order.objects.create()
    assert len(subscribed) == 1


# ---------------------------------------------------------------- inside a test's transaction


@pytest.mark.django_db
class TestInATestCase:
    """The same in the transaction of a test."""

    def test_a_save_is_published(self, subscribed: CapturedEvents) -> None:
        Order.objects.create()
        assert len(subscribed) == 1

    def test_an_error_of_a_receiver_leaves_the_transaction_of_the_test_usable(
        self, subscribed: CapturedEvents
    ) -> None:
        with ordinary(post_save, sender=Order, answer=fail), pytest.raises(ValueError, match="refused"):
            Order.objects.create()
        assert not Order.objects.exists()
        assert subscribed.topics == []


# ---------------------------------------------------------------- several databases


@pytest.mark.postgres
@pytest.mark.django_db(databases=["default", "second"], transaction=True)
@pytest.mark.parametrize("chosen", ["by using", "by the router"])
def test_row_and_event_commit_on_the_database_of_the_save(settings: Any, chosen: str) -> None:
    settings.OUTBOX = {"DATABASES": ["default", "second"]}
    asked = []

    class Router:
        def db_for_write(self, model: Any, **hints: Any) -> str | None:
            if model is not Order:
                return None
            asked.append(model)
            return "second" if len(asked) == 1 else "default"

    using = "second" if chosen == "by using" else None
    settings.DATABASE_ROUTERS = [] if using else [Router()]
    with background(post_save, sender=Order):
        models.Model.save_base(Order(note="a"), using=using)
        assert not connections["second"].in_atomic_block
    assert Order.objects.using("second").count() == Event.objects.using("second").count() == 1
    assert not Order.objects.using("default").exists()


@pytest.mark.parametrize("model", [Order, Customer])
def test_a_save_in_a_transaction_costs_no_further_statement(model: Any, subscribed: CapturedEvents) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        model.objects.create()
    assert not any("SAVEPOINT" in query["sql"] for query in queries)
