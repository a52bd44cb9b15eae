"""Bulk signals in the background: receivers get the instances in chunks, one event per chunk."""

from contextlib import ExitStack

import pytest
from django.db import transaction
from django.db.models import F
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from outbox import bulk_created, bulk_deleted, bulk_updated, receiver
from outbox.errors import UnserializableArgument
from outbox.models import Event
from tests.support.data_flow import clear_broker, finish, flush, relay_all, worker
from tests.support.receivers import background, ordinary
from tests.testapp.models import Line, Tag

pytestmark = pytest.mark.django_db(transaction=True)

SIGNALS = (bulk_created, bulk_updated, bulk_deleted)


@pytest.fixture(autouse=True)
def clean_broker():
    clear_broker()
    yield
    flush()
    clear_broker()


def lines(count: int) -> list[Line]:
    """Insert lines without a signal."""
    return Line._base_manager.bulk_create([Line(sku=f"sku-{n}") for n in range(count)])


def skus(instances) -> list[str]:
    return sorted(line.sku for line in instances)


def deliver_all() -> None:
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)


# ---------------------------------------------------------------- instances


def test_background_receivers_get_the_instances():
    with ExitStack() as stack:
        created, updated, deleted = (
            stack.enter_context(background(signal, name=f"bulk{n}", sender=Line))
            for n, signal in enumerate(SIGNALS)
        )
        Line.objects.bulk_create([Line(sku="a"), Line(sku="b"), Line(sku="c")])
        Line.objects.filter(sku="a").update(quantity=7)
        Line.objects.filter(sku="c").delete()
        deliver_all()
    assert skus(created[0]["instances"]) == ["a", "b"]  # the third was deleted
    assert [(line.sku, line.quantity) for line in updated[0]["instances"]] == [("a", 7)]
    assert (updated[0]["fields"], updated[0]["sender"], updated[0]["signal"]) == (
        frozenset({"quantity"}),
        Line,
        bulk_updated,
    )
    assert [(line.sku, line.quantity) for line in deleted[0]["instances"]] == [("c", 1)]


def test_an_event_whose_instances_are_all_deleted_is_discarded_with_the_reason():
    with background(bulk_created, sender=Line) as received:
        Line.objects.bulk_create([Line(sku="a"), Line(sku="b")])
        Line._base_manager.all().delete()
        deliver_all()
    assert received == []
    assert "testapp.Line" in Event.objects.get().deliveries.get().error


@pytest.mark.parametrize(("missing", "state", "got"), [("pass", "succeeded", 1), ("fail", "failed", 0)])
def test_missing_decides_about_deleted_instances(missing, state, got):
    with background(bulk_created, sender=Line, missing=missing) as received:
        created = Line.objects.bulk_create([Line(sku="a"), Line(sku="b")])
        Line._base_manager.filter(sku="a").delete()
        deliver_all()
    assert Event.objects.get().deliveries.get().state == state
    assert [call["instances"] for call in received] == [[None, created[1]]] * got


def test_a_batch_of_chunks_leaves_out_deleted_instances():
    sends = []

    def subscribe(**options):
        return lambda _: receiver(bulk_created, sender=Tag, batch_size=2, **options)(sends.append)

    with background(subscribe):
        tags = Tag.objects.bulk_create(Tag(name=name) for name in "abcd")
        Tag._base_manager.filter(name="b").delete()
        deliver_all()
    assert [send["instances"] for send in sends[0]] == [tags[:1], tags[2:]]


def test_rows_without_keys_are_stored_with_their_values():
    with background(bulk_created, sender=Line) as received:
        Line.objects.bulk_create([Line(sku="a", quantity=3)], ignore_conflicts=True)
        deliver_all()
    (line,) = received[0]["instances"]
    assert (line.pk, line.sku, line.quantity) == (None, "a", 3)


# ---------------------------------------------------------------- chunks


def test_one_event_per_chunk_of_the_configured_size():
    with background(bulk_created, sender=Tag) as received:
        Tag.objects.bulk_create(Tag(name=f"{n}") for n in range(5))
        assert Event.objects.count() == 3
        deliver_all()
    assert sorted(len(call["instances"]) for call in received) == [1, 2, 2]
    assert sorted(tag.name for call in received for tag in call["instances"]) == ["0", "1", "2", "3", "4"]


def test_the_chunk_size_can_be_set_for_one_operation():
    with background(bulk_updated, sender=Line), ordinary(bulk_updated, Line) as received:
        lines(5)
        Line.objects.in_signal_chunks(4).filter(quantity=1).update(quantity=2)
        assert Event.objects.count() == 2
        Line.objects.update(quantity=3)
        assert Event.objects.count() == 3
    assert [len(call["instances"]) for call in received] == [5, 5]
    assert "chunk_size" not in received[0]


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="not positive"):
        Line.objects.in_signal_chunks(size)


def test_a_chunk_that_would_be_too_large_is_split(settings):
    settings.OUTBOX = {"MAX_PAYLOAD_BYTES": 2000}
    with background(bulk_deleted, sender=Line) as received:
        lines(20)
        Line.objects.all().delete()
        deliver_all()
    assert len(received) > 1
    assert skus(line for call in received for line in call["instances"]) == sorted(
        f"sku-{n}" for n in range(20)
    )


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(0, 30), size=st.integers(1, 12))
def test_chunks_contain_each_row_once_in_order(count, size):
    Event.objects.all().delete()
    Tag._base_manager.all().delete()
    with background(bulk_created, sender=Tag):
        created = Tag.objects.in_signal_chunks(size).bulk_create(Tag(name=f"{n}") for n in range(count))
    chunks = [event.payload["arguments"]["instances"] for event in Event.objects.order_by("pk")]
    assert [reference["pk"] for chunk in chunks for reference in chunk] == [tag.pk for tag in created]
    assert all(len(chunk) == size for chunk in chunks[:-1])


# ---------------------------------------------------------------- transactions


def test_an_operation_and_its_events_roll_back_together():
    with background(bulk_created, sender=Line), pytest.raises(ZeroDivisionError), transaction.atomic():
        Line.objects.bulk_create([Line(sku="a")])
        raise ZeroDivisionError
    assert not Event.objects.exists()


def test_an_operation_outside_a_transaction_opens_one():
    with background(bulk_created, sender="testapp.Line"):
        Line.objects.bulk_create([Line(sku="a")])
    assert (Line.objects.count(), Event.objects.count()) == (1, 1)


def test_a_refused_event_rolls_back_the_operation():
    with (
        background(bulk_updated, sender=Line, snapshot=True, when=lambda instances: True),
        pytest.raises(UnserializableArgument),
    ):
        (row,) = lines(1)
        row.quantity = F("quantity") + 1
        Line.objects.bulk_update([row], ["quantity"])
    assert Line.objects.get().quantity == 1


def test_a_condition_gets_all_instances():
    lines(3)
    seen = []

    def large(instances):
        seen.append(skus(instances))
        return False

    with background(bulk_updated, sender=Line, when=large):
        Line.objects.in_signal_chunks(1).update(quantity=2)
    assert seen == [["sku-0", "sku-1", "sku-2"]]
    assert not Event.objects.exists()
