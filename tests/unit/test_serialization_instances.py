"""Model instances as arguments: as references or as snapshots."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, models
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils.functional import SimpleLazyObject

from outbox.errors import InstanceMissing, UnserializableArgument
from outbox.serialization import decode_arguments, decode_many, decode_value, dump_json, encode_arguments
from tests.testapp.models import Customer, Order, Product, ProductBase

pytestmark = pytest.mark.django_db


class Document(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid4)
    file = models.FileField()
    raw = models.BinaryField(default=b"")
    meta = models.JSONField(default=dict)

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return str(self.id)


class Seat(models.Model):
    pk = models.CompositePrimaryKey("row", "number")
    row = models.CharField(max_length=2)
    number = models.IntegerField()

    class Meta:
        app_label = "testapp"

    def __str__(self) -> str:
        return f"{self.row}{self.number}"


class LoudOrder(Order):
    class Meta:
        app_label = "testapp"
        proxy = True


def sent(*, snapshot: bool = False, **arguments: Any) -> dict[str, Any]:
    """Return the encoded arguments as the table stores them."""
    text = dump_json(encode_arguments(arguments, signal="test", snapshot=snapshot))
    data: dict[str, Any] = json.loads(text)
    return data


def round_trip(value: Any, *, snapshot: bool = False) -> Any:
    return decode_arguments(sent(value=value, snapshot=snapshot))["value"]


def test_a_saved_instance_is_encoded_as_a_reference() -> None:
    order = Order.objects.create()
    assert sent(order=order)["order"] == {
        "$": "model",
        "model": "testapp.Order",
        "pk": order.pk,
        "database": "default",
    }
    Order.objects.update(status="paid")
    assert round_trip(order) == order
    assert round_trip(order).status == "paid"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Document.objects.create(file="a.txt"),
        lambda: Seat.objects.create(row="A", number=1),
        lambda: Product.objects.create(name="x", price=1),
        lambda: ProductBase.objects.create(name="x"),
        lambda: LoudOrder.objects.create(),
        lambda: SimpleLazyObject(lambda: Order.objects.create()),
    ],
    ids=["uuid", "composite", "child", "parent", "proxy", "lazy"],
)
def test_every_kind_of_instance_is_decoded(make: Any) -> None:
    instance = make()
    found = round_trip(instance)
    assert type(found) is instance.__class__
    assert found == instance


def test_a_primary_key_given_as_text_is_encoded_with_the_type_of_its_column() -> None:
    order = Order.objects.create()
    assert round_trip(Order(pk=str(order.pk)), snapshot=True).pk == str(order.pk)
    order.pk = str(order.pk)
    assert round_trip(order).pk == int(order.pk)


def test_instances_within_containers_and_model_classes_are_decoded() -> None:
    order, customer = Order.objects.create(), Customer.objects.create(name="c")
    value = {"all": [order, (customer,)], "set": {order}, "class": LoudOrder}
    assert round_trip(value) == value


def test_many_items_are_fetched_with_one_query_for_each_model() -> None:
    orders = [Order.objects.create(customer=Customer.objects.create(name=str(n))) for n in range(20)]
    items = [sent(instance=order, customers=[order.customer]) for order in orders]
    with CaptureQueriesContext(connection) as queries:
        found = decode_many(items)
    assert len(queries) == 2
    assert found == [{"instance": order, "customers": [order.customer]} for order in orders]


def test_more_instances_than_a_statement_has_parameters_are_fetched() -> None:
    orders = Order.objects.bulk_create([Order() for _ in range(1200)])
    assert [item["o"] for item in decode_many([sent(o=order) for order in orders])] == orders  # type: ignore[index]


def test_a_missing_instance_is_an_error_of_its_item_only() -> None:
    gone, here = Order.objects.create(), Order.objects.create()
    items = [sent(order=gone), sent(order=here)]
    pk = gone.pk
    gone.delete()
    first, second = decode_many(items)
    assert isinstance(first, InstanceMissing)
    assert (first.model_label, first.pk) == ("testapp.Order", pk)
    assert second == {"order": here}
    with pytest.raises(InstanceMissing):
        decode_arguments(items[0], missing="fail")
    assert decode_arguments(items[0], missing="pass") == {"order": None}


def test_the_fields_of_a_snapshot_are_decoded_without_a_query() -> None:
    order = Order.objects.create(customer=Customer.objects.create(name="c"), total=Decimal("1.50"))
    data = sent(order=order, snapshot=True)
    order.delete()
    with CaptureQueriesContext(connection) as queries:
        found = decode_value(data["order"])
        assert (found.status, found.total, found.customer_id) == (
            "pending",
            Decimal("1.50"),
            order.customer_id,
        )
        assert (found._state.adding, found._state.db) == (False, "default")
    assert len(queries) == 0


def test_unsaved_and_deleted_instances_are_encoded_as_snapshots() -> None:
    found = round_trip(Order(status="draft"))
    assert (found.pk, found.status, found._state.adding, found._state.db) == (None, "draft", True, None)
    order = Order.objects.create(status="paid")
    order.delete()
    assert round_trip(order).status == "paid"


def test_a_snapshot_of_a_child_has_the_fields_of_its_parents() -> None:
    product = Product.objects.create(name="x", price=2)
    found = round_trip(product, snapshot=True)
    assert (found.name, found.price, found.productbase_ptr_id) == ("x", 2, product.pk)


def test_deferred_fields_of_a_snapshot_stay_deferred() -> None:
    Order.objects.create(note="long")
    with CaptureQueriesContext(connection) as queries:
        found = round_trip(Order.objects.defer("note").get(), snapshot=True)
    assert len(queries) == 1
    assert found.get_deferred_fields() == {"note"}


def test_a_snapshot_keeps_fields_of_any_type() -> None:
    document = Document.objects.create(file="a.txt", raw=b"\0\xff", meta={"$": [1, {"a": None}]})
    document.refresh_from_db()
    found = round_trip(document, snapshot=True)
    assert (found.id, found.file.name, bytes(found.raw), found.meta) == (
        document.id,
        "a.txt",
        b"\0\xff",
        {"$": [1, {"a": None}]},
    )
    assert isinstance(found.id, UUID)


def test_a_snapshot_of_an_expression_is_refused_with_the_remedy() -> None:
    order = Order(total=F("total") + 1)
    with pytest.raises(UnserializableArgument, match="refresh_from_db") as caught:
        encode_arguments({"instance": order}, signal="pre_save")
    assert caught.value.path == "instance.total"


def test_a_field_that_the_model_no_longer_has_is_left_out() -> None:
    data = sent(order=Order(status="x"))
    data["order"]["fields"]["colour"] = "red"
    del data["order"]["fields"]["note"]
    assert decode_arguments(data)["order"].get_deferred_fields() == {"note"}


def test_a_queryset_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnserializableArgument, match=r"QuerySet .* list\(queryset\)"):
        encode_arguments({"origin": Order.objects.all()}, signal="post_delete")


@pytest.mark.postgres
@pytest.mark.parametrize("value", [[1e16, -0.0, 1.5, 1e300, 5e-324], 10**300, {"$": "\\u0000 ü"}, (1, {2})])
def test_typed_values_survive_jsonb(value: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb::text", [dump_json(encode_arguments({"v": value}, signal="test"))])
        [text] = cursor.fetchone()
    assert repr(decode_arguments(json.loads(text))) == repr({"v": value})
