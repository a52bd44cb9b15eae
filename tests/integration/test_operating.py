"""Delay, expiry, dedup, cancel and pause."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.errors import InvalidKey, InvalidTime
from outbox.models import Delivery, Event, PausedHandler
from tests.support.data_flow import publish, relay_all, states_of

pytestmark = pytest.mark.django_db(transaction=True)


class Boom(Exception):
    """An error of the caller's code."""


# ---------------------------------------------------------------- expiry


def test_an_event_that_expired_is_discarded_with_the_reason():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    Delivery.objects.update(expires_at=event.created_at)
    relay_all()
    delivery = event.deliveries.get()
    assert (delivery.state, delivery.error) == ("discarded", "expired before it was dispatched")


def test_an_event_that_has_not_expired_is_dispatched():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    other = publish("flaky.mail", expires=datetime(2040, 1, 1, tzinfo=UTC))
    relay_all()
    assert (states_of(event), states_of(other)) == ({"flaky": "dispatched"},) * 2


def expire(event: Event) -> None:
    event.deliveries.update(expires_at=event.created_at)


def test_a_delivery_dispatched_before_its_expiry_may_be_dispatched_again():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    relay_all()
    # A worker has returned it, or it was not confirmed in time.
    event.deliveries.update(state="pending", confirm_by=None)
    expire(event)
    relay_all()
    assert states_of(event) == {"flaky": "dispatched"}


def test_an_operators_retry_ignores_the_expiry():
    event = publish("flaky.mail", expires=timedelta(hours=1))
    event.deliveries.update(state="failed")
    expire(event)
    assert Delivery.objects.retry() == 1
    relay_all()
    assert states_of(event) == {"flaky": "dispatched"}


@pytest.mark.parametrize("expires", [timedelta(), timedelta(seconds=-1), datetime(2040, 1, 1)])
def test_a_malformed_expiry_is_refused(expires, settings):
    settings.USE_TZ = True
    with transaction.atomic(), pytest.raises(InvalidTime, match="expires"):
        outbox.publish("flaky.mail", expires=expires)


# ---------------------------------------------------------------- dedup


def test_a_second_publish_with_the_dedup_key_returns_the_first_event():
    first = publish("test.recorded", 1, dedup_key="pay-7")
    second = publish("test.recorded", 2, dedup_key="pay-7")
    assert second == first
    assert second.payload == 1
    assert (Event.objects.count(), Delivery.objects.count()) == (1, 2)


def test_dedup_keys_are_per_topic():
    publish("test.recorded", dedup_key="pay-7")
    publish("flaky.mail", dedup_key="pay-7")
    assert Event.objects.count() == 2


def test_a_dedup_key_of_a_rolled_back_transaction_is_usable_again():
    with pytest.raises(Boom), transaction.atomic():
        outbox.publish("test.recorded", 1, dedup_key="pay-7")
        raise Boom
    publish("test.recorded", 2, dedup_key="pay-7")
    assert Event.objects.get().payload == 2


def test_a_second_publish_with_a_dedup_key_does_not_break_its_transaction():
    publish("test.recorded", dedup_key="pay-7")
    with transaction.atomic():
        outbox.publish("test.recorded", dedup_key="pay-7")
        outbox.publish("nobody.listens")
    assert Event.objects.count() == 2


def test_publish_many_publishes_a_repeated_dedup_key_once():
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
def test_only_an_event_with_a_dedup_key_needs_a_separate_statement():
    keys = [*[None] * 20, "a", "b", *[None] * 20]
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        events = outbox.publish_many(
            {"topic": "flaky.mail", "payload": n, "dedup_key": key} for n, key in enumerate(keys)
        )
    # Two COPY statements before the events with a dedup key, and two after them.
    assert len(queries) == 6
    by_insertion = Delivery.objects.order_by("pk").values_list("event_id", "event__payload")
    assert list(by_insertion) == [(event.pk, n) for n, event in enumerate(events)]


@pytest.mark.postgres
def test_only_one_of_several_concurrent_publishers_writes_the_event():
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


def test_cancelling_discards_pending_deliveries():
    event = publish("test.recorded", delay=timedelta(hours=1))
    Delivery.objects.filter(handler="record").update(state="dispatched")
    assert event.cancel("the order was withdrawn") == 1
    assert states_of(event) == {"record": "dispatched", "record_all": "discarded"}
    assert event.deliveries.get(handler="record_all").error == "the order was withdrawn"


def test_a_rolled_back_cancel_has_no_effect():
    event = publish("test.recorded")
    with pytest.raises(Boom), transaction.atomic():
        event.cancel()
        raise Boom
    assert set(states_of(event).values()) == {"pending"}


# ---------------------------------------------------------------- pause


def test_deliveries_of_a_paused_handler_wait_without_an_attempt():
    assert PausedHandler.objects.pause("record", "the mail server is down")
    event = publish("test.recorded")
    relay_all()
    assert states_of(event) == {"record": "pending", "record_all": "dispatched"}
    assert event.deliveries.values_list("waits_for", "attempts").get(handler="record") == ("resume", 0)


def test_deliveries_of_a_resumed_handler_are_dispatched():
    PausedHandler.objects.pause("record")
    event = publish("test.recorded")
    relay_all()
    assert PausedHandler.objects.resume("record")
    relay_all()
    assert states_of(event)["record"] == "dispatched"


def test_a_handler_is_paused_once_and_resumed_once():
    assert PausedHandler.objects.pause("record")
    assert not PausedHandler.objects.pause("record")
    assert PausedHandler.objects.resume("record")
    assert not PausedHandler.objects.resume("record")
