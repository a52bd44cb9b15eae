"""`captured_events` and the assertions about published events, as the tests of a project use them."""

import re
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

import outbox
from outbox.errors import InvalidTopic
from outbox.models import Event
from outbox.testing import assert_not_published, assert_published, captured_events
from tests.support.data_flow import publish

pytestmark = pytest.mark.django_db

in_both_kinds_of_tests = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("in the test's transaction", marks=pytest.mark.django_db),
        pytest.param("with real commits", marks=pytest.mark.django_db(transaction=True)),
    ],
)


class Refused(Exception):
    """Ends a transaction."""


@in_both_kinds_of_tests
def test_captured_events_are_those_published_inside_the_block(kind):
    publish("shop.before")
    with captured_events() as events:
        publish("shop.order_paid", {"order_id": 7}, key="order-7")
        publish("shop.mail_due")
    publish("shop.after")
    assert events.topics == ["shop.order_paid", "shop.mail_due"]
    assert (events[0].payload, events[0].key) == ({"order_id": 7}, "order-7")
    assert len(events) == 2


@in_both_kinds_of_tests
def test_a_rolled_back_event_is_not_captured(kind):
    def publish_and_raise():
        with transaction.atomic():
            outbox.publish("shop.order_paid")
            raise Refused

    with captured_events() as events:
        with pytest.raises(Refused):
            publish_and_raise()
        publish("shop.order_refused")
    assert events.topics == ["shop.order_refused"]


def test_an_event_rolled_back_after_the_block_disappears():
    with transaction.atomic():
        with captured_events() as events:
            publish("shop.order_paid")
        assert events.topics == ["shop.order_paid"]
        transaction.set_rollback(True)
    assert events == []


def test_captured_events_are_up_to_date_inside_the_block():
    with captured_events() as events:
        assert not events
        publish("shop.order_paid", {"order_id": 7})
        assert repr(events) == "[<shop.order_paid {'order_id': 7}>]"


def test_capturing_reads_no_older_events(django_assert_num_queries):
    publish("shop.before")
    Event.objects.update(created_at=timezone.now() - timedelta(days=1))
    with django_assert_num_queries(2), captured_events() as events:
        earlier = events._marks[0].earlier
        events._marks.clear()
    assert earlier == set()


def test_a_frozen_clock_in_the_past_hides_no_event(monkeypatch):
    publish("shop.before")
    monkeypatch.setattr("outbox.uuid7.time.time_ns", lambda: 1_500_000_000_000_000_000)
    with captured_events() as events:
        publish("shop.order_paid")
    assert events.topics == ["shop.order_paid"]


def test_published_events_are_found_by_key_payload_and_headers():
    with outbox.context(tenant="acme"):
        publish("shop.order_paid", {"order_id": 7, "lines": [{"sku": "a"}, {"sku": "b"}]}, key="order-7")
    (event,) = assert_published("shop.order_paid")
    assert event.key == "order-7"
    assert_published("shop.*", times=1)
    assert_published("shop.order_paid", key="order-7", payload__contains={"order_id": 7})
    assert_published("shop.order_paid", payload__contains={"lines": [{"sku": "b"}]})
    assert_published("shop.order_paid", payload={"order_id": 7, "lines": ({"sku": "a"}, {"sku": "b"})})
    assert_published("shop.order_paid", headers__contains={"context": {"tenant": "acme"}})
    assert_not_published("shop.order_paid", key="order-8")
    assert_not_published("shop.order_cancelled")


def test_assertions_of_a_captured_list_see_only_its_events():
    publish("shop.order_paid")
    with captured_events() as events:
        publish("shop.mail_due")
    events.assert_published("shop.mail_due", times=1)
    events.assert_not_published("shop.order_paid")
    assert_published("shop.order_paid")


def failure_of(*args, **options):
    with pytest.raises(AssertionError) as caught:
        assert_published(*args, **options)
    return str(caught.value)


def test_a_failed_assertion_shows_how_the_nearest_events_differ():
    publish("shop.order_paid", {"note": "gift", "total": 5, "order_id": 8}, key="order-8")
    publish("shop.order_paid", {"order_id": 7}, key="order-7")
    publish("shop.mail_due")
    wanted = {"order_id": 7, "total": 5}
    assert failure_of("shop.order_paid", key="order-7", payload=wanted) == (
        "'shop.order_paid' with key='order-7', payload {'order_id': 7, 'total': 5} was not published\n"
        "  <shop.order_paid key='order-7' {'order_id': 7}>\n"
        "    payload['total']: expected 5, not there\n"
        "  <shop.order_paid key='order-8' {'note': 'gift', 'total': 5, 'order_id': 8}>\n"
        "    key: expected 'order-7', found 'order-8'\n"
        "    payload['order_id']: expected 7, found 8\n"
        "    payload['note']: not expected, found 'gift'\n"
        "published too: shop.mail_due (1)"
    )


def test_a_failed_assertion_suggests_the_nearest_topic():
    publish("shop.order_paid")
    publish("shop.order_paid")
    assert failure_of("shop.order_payed") == (
        "'shop.order_payed' was not published; did you mean 'shop.order_paid'?\n"
        "published instead: shop.order_paid (2)"
    )


def test_a_failed_assertion_reports_that_nothing_was_published():
    assert failure_of("shop.order_paid") == "'shop.order_paid' was not published; nothing was published"


def test_a_failed_count_shows_the_matching_events():
    publish("shop.order_paid", 1)
    assert failure_of("shop.order_paid", times=2) == (
        "'shop.order_paid' was not published 2 times, but 1 times\n  <shop.order_paid 1>\n    matches"
    )


def test_a_failed_negative_assertion_shows_the_event():
    publish("shop.order_paid", {"order_id": 7}, key="k")
    found = "was published 1 times:\n  <shop.order_paid key='k' {'order_id': 7}>"
    with pytest.raises(AssertionError, match=re.escape(found)):
        assert_not_published("shop.*", payload__contains={"order_id": 7})


def test_an_assertion_about_a_malformed_topic_raises():
    with pytest.raises(InvalidTopic):
        assert_not_published("shop order paid")
