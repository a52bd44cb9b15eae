"""Delay, expiry, dedup, cancel and pause."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.errors import InvalidKey, InvalidTime
from outbox.models import Delivery, Event, PausedHandler
from tests.helpers import publish, relay_all, statuses

pytestmark = pytest.mark.django_db(transaction=True)


class Boom(Exception):
    """What a caller's own code raises."""


# ---------------------------------------------------------------- expiry


def test_an_event_that_expired_is_discarded_with_the_reason():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    Delivery.objects.update(expires_at=event.created_at)
    relay_all()
    delivery = event.deliveries.get()
    assert (delivery.status, delivery.error) == ("discarded", "expired before it was dispatched")


def test_an_event_that_has_not_expired_goes():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    other = publish("flaky.mail", expires=datetime(2040, 1, 1, tzinfo=UTC))
    relay_all()
    assert (statuses(event), statuses(other)) == ({"flaky": "dispatched"},) * 2


def expire(event: Event) -> None:
    event.deliveries.update(expires_at=event.created_at)


def test_what_was_dispatched_before_it_expired_may_go_again():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    relay_all()
    # As what a worker gives back, a pack retries or nobody confirmed.
    event.deliveries.update(status="pending", confirm_by=None)
    expire(event)
    relay_all()
    assert statuses(event) == {"flaky": "dispatched"}


def test_what_an_operator_retries_goes_though_it_has_expired():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    event.deliveries.update(status="failed")
    expire(event)
    assert Delivery.objects.retry() == 1
    relay_all()
    assert statuses(event) == {"flaky": "dispatched"}


@pytest.mark.parametrize("expires", [timedelta(), timedelta(seconds=-1), datetime(2040, 1, 1)])
def test_a_malformed_expiry_is_refused(expires):
    with transaction.atomic(), pytest.raises(InvalidTime, match="expires"):
        outbox.publish("flaky.mail", expires=expires)


# ---------------------------------------------------------------- dedup


def test_a_second_event_with_the_dedup_key_is_the_first_one():
    first = publish("test.recorded", 1, dedup_key="pay-7")
    second = publish("test.recorded", 2, dedup_key="pay-7")
    assert second == first
    assert second.payload == 1
    assert (Event.objects.count(), Delivery.objects.count()) == (1, 2)


def test_dedup_keys_are_per_topic():
    publish("test.recorded", dedup_key="pay-7")
    publish("flaky.mail", dedup_key="pay-7")
    assert Event.objects.count() == 2


def test_a_dedup_key_of_a_rolled_back_transaction_is_free():
    with pytest.raises(Boom), transaction.atomic():
        outbox.publish("test.recorded", 1, dedup_key="pay-7")
        raise Boom
    publish("test.recorded", 2, dedup_key="pay-7")
    assert Event.objects.get().payload == 2


def test_a_duplicate_does_not_break_its_transaction():
    publish("test.recorded", dedup_key="pay-7")
    with transaction.atomic():
        outbox.publish("test.recorded", dedup_key="pay-7")
        outbox.publish("nobody.listens")
    assert Event.objects.count() == 2


def test_duplicates_among_many_are_published_once():
    with transaction.atomic():
        events = outbox.publish_many(
            [
                {"topic": "flaky.mail", "dedup_key": "a"},
                {"topic": "flaky.mail"},
                {"topic": "flaky.mail", "dedup_key": "a"},
            ]
        )
    assert events[0] == events[2] != events[1]
    assert Event.objects.count() == 2


@pytest.mark.postgres
def test_only_an_event_with_a_dedup_key_takes_a_statement_of_its_own():
    keys = [*[None] * 20, "a", "b", *[None] * 20]
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        events = outbox.publish_many(
            {"topic": "flaky.mail", "payload": n, "dedup_key": key} for n, key in enumerate(keys)
        )
    # Twice two COPYs.
    assert len(queries) == 6
    by_insertion = Delivery.objects.order_by("pk").values_list("event_id", "event__payload")
    assert list(by_insertion) == [(event.pk, n) for n, event in enumerate(events)]


@pytest.mark.postgres
def test_of_many_at_once_one_publishes():
    barrier = threading.Barrier(8)
    ids = []

    def race():
        with transaction.atomic():
            barrier.wait()
            ids.append(outbox.publish("test.recorded", dedup_key="pay-7").pk)
        connections.close_all()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert set(ids) == {Event.objects.get().pk}
    assert Delivery.objects.count() == 2


def test_a_malformed_dedup_key_is_refused():
    with transaction.atomic(), pytest.raises(InvalidKey, match="dedup_key"):
        outbox.publish("test.recorded", dedup_key="x" * 256)


# ---------------------------------------------------------------- cancel


def test_cancelling_discards_what_is_not_dispatched():
    event = publish("test.recorded", delay=timedelta(hours=1))
    Delivery.objects.filter(handler="record").update(status="dispatched")
    assert event.cancel("the order was withdrawn") == 1
    assert statuses(event) == {"record": "dispatched", "record_all": "discarded"}
    assert event.deliveries.get(handler="record_all").error == "the order was withdrawn"


def test_a_cancel_that_rolls_back_never_was():
    event = publish("test.recorded")
    with pytest.raises(Boom), transaction.atomic():
        event.cancel()
        raise Boom
    assert set(statuses(event).values()) == {"pending"}


# ---------------------------------------------------------------- pause


def test_deliveries_of_a_paused_handler_wait_and_cost_no_attempt():
    assert PausedHandler.objects.pause("record", "the mail server is down")
    event = publish("test.recorded")
    relay_all()
    assert statuses(event) == {"record": "pending", "record_all": "dispatched"}
    assert event.deliveries.values_list("held", "attempts").get(handler="record") == ("pause", 0)


def test_deliveries_of_a_resumed_handler_go():
    PausedHandler.objects.pause("record")
    event = publish("test.recorded")
    relay_all()
    assert PausedHandler.objects.resume("record")
    relay_all()
    assert statuses(event)["record"] == "dispatched"


def test_a_handler_is_paused_once_and_resumed_once():
    assert PausedHandler.objects.pause("record")
    assert not PausedHandler.objects.pause("record")
    assert PausedHandler.objects.resume("record")
    assert not PausedHandler.objects.resume("record")
