"""Publishing with real commits: an event is stored if and only if its transaction commits."""

import re
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import outbox
from outbox import EventData, apublish, publish, publish_many
from outbox.errors import (
    InvalidKey,
    InvalidPayload,
    InvalidTime,
    InvalidTopic,
    NotInTransaction,
    PayloadTooLarge,
    UnknownDatabase,
)
from outbox.models import Delivery, Event, NewDelivery, NewEvent, write_events
from outbox.models.clock import to_aware
from outbox.publishing.notify import Notifier
from outbox.registry import registry
from outbox.uuid7 import uuid7
from tests.testapp.models import Order, Shipment
from tests.testapp.signals import order_paid
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db(transaction=True)


class Boom(Exception):
    """An error of the caller's code."""


def as_aware(moment: datetime) -> datetime:
    return to_aware(moment, "default")


def handlers_of(event: Event) -> list[str]:
    return list(event.deliveries.order_by("pk").values_list("handler", flat=True))


# ---------------------------------------------------------------- rows


def test_a_commit_leaves_an_event_with_a_delivery_per_handler():
    with transaction.atomic():
        event = publish("test.recorded", {"order": 7}, key="order-7", headers={"tenant": "a"})
    stored = Event.objects.get()
    assert (stored.pk, stored.topic, stored.key) == (event.pk, "test.recorded", "order-7")
    assert (stored.payload, stored.headers) == ({"order": 7}, {"tenant": "a"})
    assert handlers_of(event) == ["record", "record_all"]
    assert set(event.deliveries.values_list("state", flat=True)) == {"pending"}


def test_a_rolled_back_transaction_leaves_no_event():
    with pytest.raises(Boom), transaction.atomic():
        Order.objects.create()
        publish("test.recorded")
        raise Boom
    assert (Order.objects.count(), Event.objects.count(), Delivery.objects.count()) == (0, 0, 0)


def test_a_rolled_back_savepoint_leaves_only_the_outer_event():
    with transaction.atomic():
        publish("test.recorded", "outer")
        with pytest.raises(Boom), transaction.atomic():
            publish("test.recorded", "inner")
            raise Boom
    assert [event.payload for event in Event.objects.all()] == ["outer"]


def test_the_returned_event_reads_its_fields_from_the_database():
    with transaction.atomic():
        event = publish("test.recorded", {"a": [1, 2]})
    assert event.payload == {"a": [1, 2]}
    assert abs(as_aware(event.created_at) - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_event_without_handlers_is_kept():
    with transaction.atomic():
        event = publish("topic.without_handler")
    assert Event.objects.filter(pk=event.pk).exists()
    assert not Delivery.objects.exists()


@pytest.mark.postgres
def test_an_event_and_all_its_deliveries_take_one_statement():
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        publish("test.recorded")
    assert len(queries) == 1


@pytest.mark.postgres
def test_many_events_take_two_copies_and_keep_their_order():
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        events = publish_many(EventData("test.recorded", {"n": n}, key=f"k{n}") for n in range(50))
    assert [query["sql"].split("(")[0] for query in queries] == [
        "COPY outbox_event ",
        "COPY outbox_delivery ",
    ]
    assert [event.payload["n"] for event in Event.objects.order_by("pk")] == list(range(50))
    by_insertion = Delivery.objects.filter(handler="record").order_by("pk").values_list("event_id", flat=True)
    assert list(by_insertion) == [event.pk for event in events]


@pytest.mark.postgres
def test_times_of_many_events_take_one_more_statement():
    eta, last = datetime(2040, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)
    # Two moments with one clock time.
    summer, winter = (datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=n) for n in (0, 1))
    times = [{}, {"eta": eta, "expires": last}, {"eta": summer}, {"eta": winter}, {"expires": last}]
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        events = publish_many([{"topic": "test.recorded", **given} for given in times * 10])
    assert len(queries) == 3
    rows = list(Delivery.objects.filter(handler="record").order_by("pk"))
    assert [row.event_id for row in rows] == [event.pk for event in events]
    assert [row.expires_at and as_aware(row.expires_at) for row in rows] == [
        None,
        last,
        None,
        None,
        last,
    ] * 10
    at_once = as_aware(rows[0].available_at)
    due = [at_once, eta, datetime(2030, 10, 27, 0, 30, tzinfo=UTC), datetime(2030, 10, 27, 1, 30, tzinfo=UTC)]
    assert [as_aware(row.available_at) for row in rows] == [*due, at_once] * 10
    assert timedelta() <= at_once - as_aware(events[0].created_at) < timedelta(minutes=1)


@pytest.mark.postgres
def test_a_few_events_take_one_statement_each():
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        publish_many([EventData("test.recorded")] * 4)
    assert len(queries) == 4


@pytest.mark.postgres
def test_a_chunk_ends_between_two_events():
    deliveries = (NewDelivery("record", "mail"), NewDelivery("record_all", "mail"))
    events = [NewEvent(uuid7(), "test.recorded", "", "null", "{}", None, deliveries) for _ in range(21)]
    with transaction.atomic():
        write_events(events, connection, chunk_rows=10)
    by_insertion = Delivery.objects.filter(handler="record").order_by("pk").values_list("event_id", flat=True)
    assert list(by_insertion) == [event.id for event in events]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=255) | st.sampled_from(
    ["", "\\N", "\\.", "\\", "\\\\t", "a\tb", "\n", "\r\n", "\x0b\x0c\b", "'\"%s", "ü\u2028😀"]
)


@pytest.mark.postgres
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=5, max_size=8))
@example(texts=[("\\N", "\\N", "\\N")] * 5)
def test_many_events_keep_any_text(texts):
    with transaction.atomic():
        events = publish_many(
            EventData("test.keyed", {payload: [payload]}, key=key, headers={"h": header})
            for key, payload, header in texts
        )
    stored = Event.objects.in_bulk([event.pk for event in events])
    assert [(row.key, row.payload, row.headers) for row in (stored[event.pk] for event in events)] == [
        (key, {payload: [payload]}, {"h": header}) for key, payload, header in texts
    ]


@pytest.mark.postgres
def test_a_failed_copy_raises_an_error_of_django_and_writes_nothing(monkeypatch):
    monkeypatch.setattr("outbox.publishing.publish.uuid7", lambda: UUID(int=7))
    with transaction.atomic():
        with pytest.raises(IntegrityError, match="outbox_event"), transaction.atomic():
            publish_many([EventData("test.recorded")] * 9)
        assert not Event.objects.exists()


@pytest.mark.postgres
def test_many_events_in_a_broken_transaction_are_refused():
    with transaction.atomic():
        with pytest.raises(TransactionManagementError):
            transaction.set_rollback(True)
            publish_many([EventData("test.recorded")] * 9)
        transaction.set_rollback(True)
    assert not Event.objects.exists()


@pytest.mark.postgres
def test_text_that_the_client_encoding_lacks_aborts_the_transaction():
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL client_encoding TO LATIN1")
        publish_many([EventData("test.recorded", key="ü")] * 9)
        with pytest.raises(UnicodeEncodeError), transaction.atomic():
            publish_many([EventData("test.recorded", key="€")] * 9)
        assert set(Event.objects.values_list("key", flat=True)) == {"ü"}
        with pytest.raises(UnicodeEncodeError):
            publish_many([EventData("test.recorded", key="€")] * 9)
        with pytest.raises(TransactionManagementError):
            publish("test.recorded")
    assert not Event.objects.exists()


@pytest.mark.postgres
def test_many_delayed_events_without_handlers_are_kept():
    with transaction.atomic():
        publish_many([EventData("topic.without_handler", delay=timedelta(hours=1))] * 9)
    assert (Event.objects.count(), Delivery.objects.count()) == (9, 0)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key": "order-7"},
        {"headers": {"tenant": "a"}},
        {"delay": timedelta(hours=1), "key": "order-7"},
        {"eta": datetime(2030, 1, 1, tzinfo=UTC), "expires": datetime(2031, 1, 1, tzinfo=UTC)},
        {"delay": timedelta(hours=1), "expires": timedelta(hours=2)},
    ],
)
def test_publish_and_publish_many_write_equal_rows(given, odd_handlers):
    with transaction.atomic():
        alone = publish("odd.one", {"order": 7}, **given)
        first, *_others = publish_many([EventData("odd.one", {"order": 7}, **given)] * 9)
        once = publish("odd.one", {"order": 7}, dedup_key="one", **given)
    assert rows_of(alone) == rows_of(first) == rows_of(once)
    assert [row["handler"] for row in rows_of(alone)] == odd_handlers


def rows_of(event: Event) -> list[dict[str, object]]:
    """Return the deliveries of an event, with times relative to the event's."""
    stored = Event.objects.get(pk=event.pk)
    return [
        {
            "event": (stored.topic, stored.key, stored.payload, stored.headers, stored.version),
            "handler": row.handler,
            "queue": row.queue,
            "key": row.key,
            "waits_for": row.waits_for,
            "due": minutes_after(row.available_at, stored),
            "expires": row.expires_at and minutes_after(row.expires_at, stored),
        }
        for row in event.deliveries.order_by("pk")
    ]


def minutes_after(moment: datetime, event: Event) -> int:
    return round((moment - event.created_at) / timedelta(minutes=1))


@pytest.fixture
def odd_handlers():
    """Declare handlers with various options, whose names need quoting in SQL; return the names."""
    names = ["odd 100% sure", "odd it's", "odd \\ %(id)s", "odd batch"]
    options = [{}, {}, {"ordered": True}, {"batch_size": 5, "batch_wait": timedelta(minutes=3)}]
    for name, its_options in zip(names, options, strict=True):

        @outbox.handler("odd.*", name=name, **its_options)
        def nothing(event): ...

    yield names
    for name in names:
        registry.remove(name)


def test_publish_many_of_nothing_writes_nothing():
    with transaction.atomic():
        assert publish_many([]) == []


def test_if_one_of_many_events_is_invalid_none_is_written():
    with transaction.atomic(), pytest.raises(InvalidTopic):
        publish_many([EventData("test.recorded"), EventData("not a topic")])
    assert not Event.objects.exists()


def test_events_of_one_process_have_ascending_ids():
    with transaction.atomic():
        ids = [publish("topic.without_handler").pk for _ in range(200)]
    assert ids == sorted(ids)


# ---------------------------------------------------------------- transactions


def test_publishing_outside_a_transaction_is_refused_with_the_remedy():
    with pytest.raises(NotInTransaction, match=r"transaction\.atomic\(\)"):
        publish("test.recorded")


def test_with_require_transaction_off_an_event_needs_no_transaction(settings):
    settings.OUTBOX = {"REQUIRE_TRANSACTION": False}
    publish("test.recorded")
    assert Delivery.objects.count() == 2


def test_async_code_publishes_in_a_transaction_of_its_thread(settings):
    settings.OUTBOX = {"REQUIRE_TRANSACTION": False}

    async def main():
        with outbox.context(tenant="acme"):
            return await apublish("test.recorded", {"n": 1}, key="k")

    event = async_to_sync(main)()
    assert Event.objects.get().headers == {"context": {"tenant": "acme"}}
    assert event.key == "k"


def test_async_code_outside_a_transaction_is_refused():
    with pytest.raises(NotInTransaction):
        async_to_sync(apublish)("test.recorded")


# ---------------------------------------------------------------- time


def test_a_delay_counts_from_the_database_clock():
    with transaction.atomic():
        event = publish("test.recorded", delay=timedelta(minutes=5))
    created, available = Delivery.objects.filter(event=event).values_list(
        "event__created_at", "available_at"
    )[0]
    assert timedelta(minutes=4, seconds=59) < available - created < timedelta(minutes=5, seconds=5)


def test_an_eta_is_kept_as_given():
    eta = datetime(2040, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    with transaction.atomic():
        event = publish("test.recorded", eta=eta)
    assert set(map(as_aware, event.deliveries.values_list("available_at", flat=True))) == {eta}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "topic", ["", ".", "a.", ".a", "a..b", "a b", "shop.*", "ä", "x" * 201, None, 7, ["a"]]
)
def test_a_malformed_topic_is_refused(topic):
    with transaction.atomic(), pytest.raises(InvalidTopic, match="topic"):
        publish(topic)


@pytest.mark.parametrize("key", [7, None, "x" * 256, "a\0b", "a\ud800b"])
def test_a_malformed_key_is_refused_with_the_remedy(key):
    fact = rf"^key {re.escape(repr(key))} must be a string of at most 255 characters without NUL and lone "
    with transaction.atomic(), pytest.raises(InvalidKey, match=fact):
        publish("test.recorded", key=key)


def test_a_malformed_dedup_key_is_refused_under_its_own_name():
    with transaction.atomic(), pytest.raises(InvalidKey, match=r"^dedup_key 7 must be a string"):
        publish("test.recorded", dedup_key=7)


NAIVE = datetime(2040, 1, 1)
AWARE = datetime(2040, 1, 1, tzinfo=UTC)
NAIVE_TIME = r"datetime\(2040, 1, 1, 0, 0\) is naive; give an aware datetime, such as timezone\.now\(\)"


@pytest.mark.parametrize(
    ("times", "fact"),
    [
        ({"eta": NAIVE}, rf"^eta datetime\.{NAIVE_TIME}"),
        ({"expires": NAIVE}, rf"^expires datetime\.{NAIVE_TIME}"),
        (
            {"delay": timedelta(seconds=-1)},
            r"^delay .*seconds=86399.* is negative; give a positive timedelta or none$",
        ),
        (
            {"expires": timedelta()},
            r"^expires datetime\.timedelta\(0\) is not positive; give a positive timedelta or none$",
        ),
        ({"eta": AWARE, "delay": timedelta(1)}, r"^delay and eta were both given; give one of them$"),
    ],
)
def test_a_malformed_time_is_refused_with_the_remedy(times, fact, settings):
    settings.USE_TZ = True
    with transaction.atomic(), pytest.raises(InvalidTime, match=fact):
        publish("test.recorded", **times)


def test_a_value_that_json_cannot_represent_is_reported_with_its_path():
    payload = {"lines": [{"price": 1}, {"price": Decimal("1.50")}]}
    with (
        transaction.atomic(),
        pytest.raises(InvalidPayload, match=r"payload\['lines'\]\[1\]\['price'\]: .*Decimal"),
    ):
        publish("test.recorded", payload)


@pytest.mark.parametrize("value", [float("nan"), "a\0b", "\ud800", {1: 2}, object()])
def test_a_value_that_the_database_cannot_store_is_refused(value):
    with transaction.atomic(), pytest.raises(InvalidPayload, match=r"payload\['x'\]"):
        publish("test.recorded", {"x": value})
    assert not Event.objects.exists()


def test_a_payload_over_the_limit_is_refused(settings):
    settings.OUTBOX = {"MAX_PAYLOAD_BYTES": 100}
    with transaction.atomic(), pytest.raises(PayloadTooLarge, match="MAX_PAYLOAD_BYTES is 100"):
        publish("test.recorded", "ü" * 60)
    with transaction.atomic():
        publish("test.recorded", "u" * 90)


def test_a_reserved_header_is_refused():
    with transaction.atomic(), pytest.raises(InvalidPayload, match="reserved"):
        publish("test.recorded", headers={"causation_id": "x"})


def test_an_unknown_database_is_refused():
    with pytest.raises(UnknownDatabase, match="'replica' is not configured"):
        publish("test.recorded", using="replica")


# ---------------------------------------------------------------- signals and actors


def test_one_send_with_three_background_receivers_makes_one_event_and_three_deliveries():
    with transaction.atomic():
        order_paid.send(sender=None, order_id=7)
    event = Event.objects.get()
    assert event.topic == "tests.testapp.signals.order_paid"
    assert handlers_of(event) == ["paid_mail", "paid_stock", "paid_analytics"]


def test_a_saved_model_makes_an_event_keyed_by_its_instance():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1")
    event = Event.objects.get()
    assert (event.topic, event.key) == ("post_save.testapp.shipment", f"testapp.shipment:{shipment.pk}")
    assert handlers_of(event) == ["shipment_saved"]


def test_a_signal_sent_outside_a_transaction_is_refused():
    with pytest.raises(NotInTransaction):
        order_paid.send(sender=None, order_id=7)


def test_a_background_receiver_adds_no_listener_to_other_senders():
    from django.db.models.signals import post_save

    assert post_save.has_listeners(Shipment)
    assert not post_save.has_listeners(Event)


def test_a_transactional_actor_publishes_with_the_commit():
    with transaction.atomic():
        message = resize.send(7, width=20)
    event = Event.objects.get()
    assert (event.topic, event.payload) == ("actor.resize", {"args": [7], "kwargs": {"width": 20}})
    assert (message.args, message.kwargs) == ((7,), {"width": 20})
    assert handlers_of(event) == ["resize"]


def test_a_transactional_actor_that_rolls_back_sends_nothing():
    with pytest.raises(Boom), transaction.atomic():
        resize.send(7)
        raise Boom
    assert not Event.objects.exists()


def test_a_delay_of_a_transactional_actor_may_be_milliseconds():
    with transaction.atomic():
        resize.send_with_options(args=(7,), delay=60_000)
    created, available = Delivery.objects.values_list("event__created_at", "available_at").get()
    assert timedelta(seconds=59) < available - created < timedelta(seconds=65)


# ---------------------------------------------------------------- waking the relay


@pytest.fixture
def woken(monkeypatch):
    """Return the databases whose relays are woken."""
    found = []
    monkeypatch.setattr(Notifier, "notify", lambda _self, using, **_: found.append(using))
    return found


@pytest.mark.postgres
def test_a_transaction_wakes_the_relay_once(woken):
    with transaction.atomic():
        publish("test.recorded")
        with transaction.atomic():
            publish("test.recorded")
        assert woken == []
    assert woken == ["default"]


@pytest.mark.postgres
def test_a_rolled_back_savepoint_does_not_prevent_a_later_wakeup(woken):
    with transaction.atomic():
        with pytest.raises(Boom), transaction.atomic():
            publish("test.recorded")
            raise Boom
        publish("test.recorded")
    assert woken == ["default"]


@pytest.mark.postgres
def test_a_rolled_back_transaction_wakes_no_relay(woken):
    with pytest.raises(Boom), transaction.atomic():
        publish("test.recorded")
        raise Boom
    assert woken == []


def test_context_of_one_thread_does_not_reach_another():
    def other():
        with transaction.atomic():
            publish("topic.without_handler", "other")
        connection.close()

    with outbox.context(tenant="acme"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with transaction.atomic():
            publish("topic.without_handler", "mine")
    headers = {event.payload: event.headers for event in Event.objects.all()}
    assert headers == {"mine": {"context": {"tenant": "acme"}}, "other": {}}
