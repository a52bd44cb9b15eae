"""Bulk signals: Django's bulk operations keep their results, and send signals to ordinary receivers."""

import threading
from contextlib import ExitStack, contextmanager

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, F
from django.test.utils import CaptureQueriesContext

from outbox import BulkSignalQuerySet, bulk_created, bulk_deleted, bulk_updated
from outbox.signals.bulk import BulkSignal
from tests.support.processes import wait_until
from tests.support.receivers import background, ordinary
from tests.testapp.models import Basket, Line, NamedQuerySet, Order, Product, Tag

pytestmark = pytest.mark.django_db(transaction=True)

SIGNALS: tuple[BulkSignal, ...] = (bulk_created, bulk_updated, bulk_deleted)


@contextmanager
def listening(sender=Line):
    """Connect a receiver to all three signals; yield a function that returns pairs (signal, arguments)."""
    with ExitStack() as stack:
        received = [(signal, stack.enter_context(ordinary(signal, sender))) for signal in SIGNALS]
        yield lambda: [(signal, arguments) for signal, calls in received for arguments in calls]


def lines(count: int, basket=None) -> list[Line]:
    """Insert lines without a signal."""
    return Line._base_manager.bulk_create([Line(sku=f"sku-{n}", basket=basket) for n in range(count)])


def skus(instances) -> list[str]:
    return sorted(line.sku for line in instances)


# ---------------------------------------------------------------- ordinary receivers


def test_bulk_create_sends_the_instances_with_their_keys():
    with ordinary(bulk_created, Line) as received:
        created = Line.objects.bulk_create([Line(sku="a"), Line(sku="b")], batch_size=1)
    assert received == [
        {
            "signal": bulk_created,
            "sender": Line,
            "instances": created,
            "using": "default",
            "ignore_conflicts": False,
            "update_conflicts": False,
        }
    ]
    assert all(line.pk for line in created)


def test_bulk_create_with_ignored_conflicts_sends_instances_without_keys():
    lines(1)
    with ordinary(bulk_created, Line) as received:
        created = Line.objects.bulk_create([Line(sku="sku-0"), Line(sku="new")], ignore_conflicts=True)
    assert (received[0]["ignore_conflicts"], received[0]["instances"]) == (True, created)
    assert [line.pk for line in created] == [None, None]


def test_bulk_create_with_updated_conflicts_sends_inserted_and_updated_rows():
    (old,) = lines(1)
    with ordinary(bulk_created, Line) as received:
        Line.objects.bulk_create(
            [Line(sku="sku-0", quantity=5), Line(sku="new", quantity=6)],
            update_conflicts=True,
            update_fields=["quantity"],
            unique_fields=["sku"],
        )
    assert received[0]["update_conflicts"]
    assert received[0]["instances"][0].pk == old.pk
    assert Line.objects.get(pk=old.pk).quantity == 5


def test_bulk_update_sends_one_signal_for_all_its_batches():
    rows = lines(5)
    for row in rows:
        row.quantity = 9
    with listening() as received:
        assert Line.objects.bulk_update(rows, ["quantity"], batch_size=2) == 5
    ((signal, arguments),) = received()
    assert signal is bulk_updated
    assert (arguments["instances"], arguments["fields"]) == (rows, frozenset({"quantity"}))


def test_bulk_update_leaves_out_deleted_rows():
    rows = lines(3)
    Line._base_manager.filter(pk=rows[1].pk).delete()
    with ordinary(bulk_updated, Line) as received:
        assert Line.objects.bulk_update(rows, ["quantity"]) == 2
    assert received[0]["instances"] == [rows[0], rows[2]]


def test_update_sends_the_rows_with_their_new_values():
    rows = lines(3)
    with listening() as received:
        assert Line.objects.filter(pk__in=[rows[0].pk, rows[2].pk]).update(quantity=F("quantity") + 6) == 2
    ((signal, arguments),) = received()
    assert signal is bulk_updated
    assert [(line.pk, line.quantity) for line in arguments["instances"]] == [(rows[0].pk, 7), (rows[2].pk, 7)]
    assert (arguments["fields"], arguments["using"]) == (frozenset({"quantity"}), "default")


def test_update_sends_rows_that_no_longer_match():
    lines(2)
    with ordinary(bulk_updated, Line) as received:
        assert Line.objects.filter(quantity=1).update(quantity=2) == 2
    assert skus(received[0]["instances"]) == ["sku-0", "sku-1"]


def test_delete_sends_the_instances_with_their_values_before():
    rows = lines(3)
    with listening() as received:
        result = Line.objects.filter(pk__in=[rows[0].pk, rows[1].pk]).only("id").delete()
    ((signal, arguments),) = received()
    assert result[0] == 2
    assert signal is bulk_deleted
    assert [(line.pk, line.sku) for line in arguments["instances"]] == [
        (rows[0].pk, "sku-0"),
        (rows[1].pk, "sku-1"),
    ]
    assert Line.objects.get().sku == "sku-2"


@pytest.mark.parametrize(
    "operation",
    [
        lambda: Line.objects.bulk_create([]),
        lambda: Line.objects.bulk_update([], ["quantity"]),
        lambda: Line.objects.filter(sku="none").update(quantity=1),
        lambda: Line.objects.none().update(quantity=1),
        lambda: Line.objects.filter(sku="none").delete(),
    ],
)
def test_an_operation_on_no_rows_sends_nothing(operation):
    with listening() as received:
        operation()
    assert received() == []


def test_a_receiver_of_another_model_is_not_called():
    with listening(Tag) as received:
        Line.objects.bulk_create([Line(sku="a")])
    assert received() == []


def test_a_sender_may_be_given_as_a_label():
    received = []

    def listen(sender, **arguments):
        received.append(sender)

    bulk_created.connect(listen, sender="testapp.Line")
    Line.objects.bulk_create([Line(sku="a")])
    bulk_created.disconnect(listen, sender="testapp.Line")
    Line.objects.bulk_create([Line(sku="b")])
    assert received == [Line]


def test_models_with_multi_table_inheritance_send_their_rows():
    product = Product.objects.create(name="old", price=1)
    Product.objects.create(name="other", price=1)
    products = BulkSignalQuerySet(Product)
    with listening(Product) as received:
        assert products.filter(name="old").update(name="new", price=2) == 1
        result = products.filter(name="new").delete()
    assert result == (2, {"testapp.Product": 1, "testapp.ProductBase": 1})
    found = [
        (signal, one.pk, one.name, one.price) for signal, call in received() for one in call["instances"]
    ]
    assert found == [(signal, product.pk, "new", 2) for signal in (bulk_updated, bulk_deleted)]


def test_an_error_of_a_receiver_rolls_back_the_operation():
    def refuse(**arguments):
        raise ZeroDivisionError

    lines(1)
    with ordinary(bulk_updated, answer=refuse), pytest.raises(ZeroDivisionError):
        Line.objects.update(quantity=9)
    with ordinary(bulk_deleted, answer=refuse), pytest.raises(ZeroDivisionError):
        Line.objects.all().delete()
    with ordinary(bulk_created, answer=refuse), pytest.raises(ZeroDivisionError):
        Line.objects.bulk_create([Line(sku="a")])
    assert list(Line.objects.values_list("sku", "quantity")) == [("sku-0", 1)]


def test_a_failed_operation_sends_nothing():
    lines(1)
    with listening() as received, pytest.raises(IntegrityError):
        Line.objects.bulk_create([Line(sku="sku-0")])
    assert received() == []


# ---------------------------------------------------------------- the results are those of Django


OPERATIONS = {
    "bulk_create": lambda: [line.sku for line in Line.objects.bulk_create([Line(sku="x"), Line(sku="y")])],
    "bulk_create of a generator": lambda: len(Line.objects.bulk_create(Line(sku=sku) for sku in "xy")),
    "bulk_update": lambda: Line.objects.bulk_update(list(Line.objects.all()), ["quantity"]),
    "bulk_update of generators": lambda: Line.objects.bulk_update(
        (line for line in Line.objects.all()), (name for name in ["quantity"])
    ),
    "bulk_update twice the same": lambda: Line.objects.bulk_update([*Line.objects.all()] * 2, ["quantity"]),
    "update": lambda: Line.objects.filter(quantity=1).update(quantity=2),
    "update nothing": lambda: Line.objects.filter(quantity=99).update(quantity=2),
    "update of values": lambda: Line.objects.values("sku").update(quantity=2),
    "update of ordered": lambda: Line.objects.order_by("-sku").update(quantity=2),
    "update by annotation": lambda: (
        Line.objects.annotate(double=F("quantity") * 2).filter(double__gt=1).update(quantity=F("double"))
    ),
    "update by a join": lambda: Line.objects.filter(basket__name="b").update(quantity=2),
    "update by a join that multiplies": lambda: Line.objects.filter(tags__name__startswith="t").update(
        quantity=2
    ),
    "update of grouped rows": lambda: (
        Line.objects.annotate(n=Count("tags")).filter(n__gt=1).update(quantity=2)
    ),
    "update of distinct rows": lambda: Line.objects.filter(tags__name__gt="").distinct().update(quantity=2),
    "update by an empty basket": lambda: Line.objects.filter(basket__isnull=True).update(quantity=2),
    "update a slice": lambda: Line.objects.all()[:2].update(quantity=2),
    "update a union": lambda: Line.objects.union(Line.objects.all()).update(quantity=2),
    "update an unknown field": lambda: Line.objects.update(colour="red"),
    "delete": lambda: Line.objects.filter(sku__lt="sku-2").delete(),
    "delete nothing": lambda: Line.objects.filter(sku="none").delete(),
    "delete by a join": lambda: Line.objects.filter(tags__name__startswith="t").delete(),
    "delete with related rows": lambda: Basket.objects.all().delete(),
    "delete a slice": lambda: Line.objects.all()[:2].delete(),
    "delete values": lambda: Line.objects.values("sku").delete(),
    "delete a union": lambda: Line.objects.union(Line.objects.all()).delete(),
}


def result_of(operation):
    """Run an operation on the same rows; return its result or error, and the remaining rows."""
    basket = Basket.objects.create(name="b")
    rows = lines(4, basket)
    tags = Tag._base_manager.bulk_create([Tag(name="t1"), Tag(name="t2")])
    rows[0].tags.set(tags)
    rows[1].tags.set(tags[:1])
    try:
        result = operation()
    except Exception as error:
        result = (type(error), str(error))
    left = list(Line._base_manager.order_by("sku").values_list("sku", "quantity"))
    for model in (Line, Tag, Basket):
        model._base_manager.all().delete()
    return result, left


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_result_is_the_same_with_and_without_receivers(name):
    without_receivers = result_of(OPERATIONS[name])
    with listening(), listening(Basket), background(bulk_updated, sender=Line):
        assert result_of(OPERATIONS[name]) == without_receivers


@pytest.mark.parametrize(
    "operation",
    [
        lambda manager: manager.bulk_create([Line(sku="x")]),
        lambda manager: manager.update(quantity=2),
        lambda manager: manager.bulk_update(list(manager.all()), ["quantity"]),
        lambda manager: manager.all().delete(),
    ],
)
def test_without_receivers_the_queries_are_the_queries_of_django(operation):
    def queries(manager) -> list[str]:
        Line._base_manager.all().delete()
        lines(3)
        with CaptureQueriesContext(connection) as captured:
            operation(manager)
        # The keys differ in each run.
        return [query["sql"].partition(" ")[0] for query in captured]

    with listening(Tag):
        assert queries(Line.objects) == queries(Line._base_manager)


def count_queries(operation) -> int:
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        operation()
    return len(captured)


def test_an_update_with_a_background_receiver_costs_one_query_for_the_keys_and_one_event():
    lines(3)
    plain = count_queries(lambda: Line.objects.update(quantity=2))
    with background(bulk_updated, sender=Line):
        received = count_queries(lambda: Line.objects.update(quantity=3))
    assert received - plain == (2 if connection.vendor == "postgresql" else 3)


def test_unsafe_methods_are_marked_as_django_marks_them():
    assert Line.objects.all().update.alters_data
    assert Line.objects.all().delete.alters_data
    assert not hasattr(Line.objects, "delete")


# ---------------------------------------------------------------- related managers, mixins, async


def test_related_managers_of_foreign_keys_send():
    basket, other = Basket.objects.create(name="b"), Basket.objects.create(name="o")
    lines(2, basket)
    Line._base_manager.create(sku="other", basket=other)
    with listening() as received:
        basket.lines.bulk_create([Line(sku="new", basket=basket)])
        basket.lines.update(quantity=4)
        basket.lines.filter(sku="new").delete()
        basket.lines.clear()
    assert [(signal, skus(arguments["instances"])) for signal, arguments in received()] == [
        (bulk_created, ["new"]),
        (bulk_updated, ["new", "sku-0", "sku-1"]),
        (bulk_updated, ["sku-0", "sku-1"]),
        (bulk_deleted, ["new"]),
    ]


def test_related_managers_of_many_to_many_fields_send():
    (line,) = lines(1)
    line.tags.set(Tag._base_manager.bulk_create([Tag(name="a"), Tag(name="b")]))
    Tag._base_manager.create(name="other")
    with ordinary(bulk_updated, Tag) as received:
        assert line.tags.update(name="c") == 2
    assert [tag.name for tag in received[0]["instances"]] == ["c", "c"]


def test_a_queryset_keeps_its_own_methods_with_the_mixin():
    Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")])
    with ordinary(bulk_updated, Tag) as received:
        assert Tag.objects.named("a").update(name="c") == 1
    assert isinstance(Tag.objects.all(), NamedQuerySet)
    assert [tag.name for tag in received[0]["instances"]] == ["c"]


def test_the_async_methods_send_and_return_the_results_of_django():
    async def main():
        created = await Line.objects.abulk_create([Line(sku="a"), Line(sku="b")])
        results = [
            len(created),
            await Line.objects.abulk_update(created, ["quantity"]),
            await Line.objects.aupdate(quantity=2),
            (await Line.objects.filter(sku="a").adelete())[0],
        ]
        return results

    with listening() as received:
        assert async_to_sync(main)() == [2, 2, 2, 1]
    assert [signal for signal, _ in received()] == [bulk_created, bulk_updated, bulk_updated, bulk_deleted]


# ---------------------------------------------------------------- concurrency


@pytest.mark.postgres
@pytest.mark.parametrize("complicated", [False, True])
def test_an_update_that_waited_sends_only_rows_that_still_match(complicated):
    """If another transaction changes a row while the update waits for its lock, the update skips the row."""
    lines(2)
    Tag._base_manager.create(name="t").lines.set(Line._base_manager.all())
    locked, waiting = threading.Event(), threading.Event()

    def change_the_first() -> None:
        with transaction.atomic():
            Line._base_manager.filter(sku="sku-0").update(quantity=50)
            locked.set()
            waiting.wait(10)
        connection.close()

    thread = threading.Thread(target=change_the_first)
    thread.start()
    locked.wait(10)
    watcher = threading.Thread(
        target=lambda: (wait_until(_a_session_waits_for_a_lock), waiting.set(), connection.close())
    )
    watcher.start()
    rows = Line.objects.filter(quantity=1)
    with ordinary(bulk_updated, Line) as received:
        updated = (rows.filter(tags__name="t") if complicated else rows).update(quantity=2)
    thread.join()
    watcher.join()
    assert (updated, skus(received[0]["instances"])) == (1, ["sku-1"])
    assert dict(Line._base_manager.values_list("sku", "quantity")) == {"sku-0": 50, "sku-1": 2}


def _a_session_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database())"
        )
        return cursor.fetchone()[0]


def test_models_without_the_manager_send_nothing():
    with ordinary(bulk_updated) as received:
        Order.objects.create()
        Order.objects.update(status="paid")
    assert received == []
