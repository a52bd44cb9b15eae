"""Rows and messages of a version that a process does not read wait for one that does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import dramatiq
import pytest
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

import outbox
from outbox import versions
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.helpers import finish, flush, publish, relay_all, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)

NEXT = versions.NEWEST + 1


@pytest.fixture(autouse=True)
def empty_broker():
    """Leave no message and no outcome to other tests."""
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


@pytest.fixture
def ordered():
    """Return what an ordered handler has seen."""
    seen = []

    @outbox.handler("versions.*", name="versions", ordered=True, queue_name=QUEUE)
    def see(event):
        seen.append(event.payload)

    yield seen
    registry.remove("versions")


@pytest.fixture
def batched():
    """Return the lists that a batched handler has seen."""
    seen = []
    options = {"batch_size": 2, "batch_wait": timedelta(hours=1), "queue_name": QUEUE}

    @outbox.handler("versions.*", name="versions", **options)
    def see(events):
        seen.append([event.payload for event in events])

    yield seen
    registry.remove("versions")


def publish_next(payload=None, *, topic="flaky.once", **options):
    """Publish as a release would that writes the next version."""
    event = publish(topic, payload, **options)
    Event.objects.filter(pk=event.pk).update(version=NEXT)
    return event


def sent() -> list[dict]:
    return [json.loads(body) for body in dramatiq.get_broker().queues[QUEUE].queue]


def make_due(event: Event) -> None:
    event.deliveries.update(available_at=event.created_at)


def enqueue_as(version: object, event: Event) -> None:
    """Dispatch an event with another version in its message."""
    relay_all()
    (message,) = sent()
    dramatiq.get_broker().flush_all()
    message["options"]["outbox"]["v"] = version
    dramatiq.get_broker().enqueue(dramatiq.Message(**message))


def given_back(event: Event) -> Delivery:
    """Run a worker until it has given back the one delivery of an event."""
    with worker():

        def back() -> Delivery | None:
            flush()
            return event.deliveries.filter(status="pending").first()

        return wait_until(back, what="the delivery to be given back")


# ---------------------------------------------------------------- the constants


def test_a_release_reads_what_it_writes_and_what_its_neighbours_write() -> None:
    assert 1 <= versions.OLDEST <= max(versions.WRITTEN - 1, 1)
    assert versions.WRITTEN <= versions.NEWEST <= versions.WRITTEN + 1


@pytest.mark.parametrize("version", range(versions.OLDEST, versions.NEWEST + 1))
def test_what_lies_between_the_bounds_is_read(version: int) -> None:
    assert versions.why_unreadable(version) == ""


def test_a_row_without_a_version_is_of_the_first_for_ever() -> None:
    default = Event._meta.get_field("version").db_default
    assert (default.value if isinstance(default, models.Value) else default) == versions.UNWRITTEN == 1


# ---------------------------------------------------------------- rows


def test_a_published_event_says_the_version_that_is_written() -> None:
    one = publish("nobody.hears")
    once = publish("nobody.hears", dedup_key="once")
    assert {Event.objects.get(pk=event.pk).version for event in (one, once)} == {versions.WRITTEN}


def test_a_newer_row_stays_pending_with_the_reason_and_costs_no_attempt() -> None:
    newer, other = publish_next(), publish("flaky.once")
    relay_all()
    delivery = newer.deliveries.get()
    assert (delivery.status, delivery.attempts) == ("pending", 0)
    assert f"it is of version {NEXT}, and this process reads none after {versions.NEWEST}" in delivery.error
    assert delivery.available_at > newer.created_at
    assert statuses(other) == {"flaky": "dispatched"}
    assert len(sent()) == 1


def test_a_newer_row_that_has_expired_is_not_judged_by_an_older_relay() -> None:
    event = publish_next(expires=timedelta(milliseconds=1))
    event.deliveries.update(expires_at=event.created_at)
    relay_all()
    assert statuses(event) == {"flaky": "pending"}


def test_a_relay_that_reads_the_version_sends_the_row_on(monkeypatch: pytest.MonkeyPatch) -> None:
    event = publish_next()
    relay_all()
    monkeypatch.setattr(versions, "NEWEST", NEXT)
    make_due(event)
    relay_all()
    with worker():
        assert finish(event) == {"flaky": "succeeded"}


def test_the_message_of_a_newer_row_is_of_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NEWEST", NEXT)
    publish_next()
    publish("flaky.once")
    relay_all()
    assert sorted(message["options"]["outbox"]["v"] for message in sent()) == [versions.WRITTEN, NEXT]


def test_a_newer_row_keeps_its_place_in_its_lane(ordered, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish_next(1, topic="versions.one", key="lane")
    second = publish("versions.one", 2, key="lane")
    relay_all()
    assert sent() == []
    assert statuses(second) == {"versions": "pending"}
    monkeypatch.setattr(versions, "NEWEST", NEXT)
    make_due(first)
    with worker():
        relay_all()
        assert finish(first) == {"versions": "succeeded"}
        flush()
        relay_all()
        assert finish(second) == {"versions": "succeeded"}
    assert ordered == [1, 2]


def test_a_newer_row_is_left_out_of_a_batch(batched) -> None:
    newer = publish_next("newer", topic="versions.one")
    older = publish("versions.one", "older")
    relay_all()
    assert statuses(newer) == {"versions": "pending"}
    with worker():
        assert finish(older) == {"versions": "succeeded"}
    assert batched == [["older"]]


@pytest.mark.postgres
def test_the_version_takes_no_statement_of_its_own() -> None:
    with CaptureQueriesContext(connection) as statements:
        publish("flaky.once")
    written = [query["sql"] for query in statements if "outbox_event" in query["sql"]]
    assert len(written) == 1


# ---------------------------------------------------------------- messages


def test_a_newer_message_is_given_back_with_the_reason_and_does_not_run() -> None:
    event = publish("flaky.once")
    enqueue_as(NEXT, event)
    delivery = given_back(event)
    assert f"a worker cannot read the message: it is of version {NEXT}" in delivery.error
    assert delivery.available_at > event.created_at + timedelta(seconds=20)
    assert delivery.attempts == 0
    assert not Effect.objects.exists()


def test_a_newer_message_is_given_back_whatever_its_envelopes_look_like() -> None:
    event = publish("flaky.once")
    relay_all()
    (message,) = sent()
    dramatiq.get_broker().flush_all()
    message["options"]["outbox"]["v"] = NEXT
    dramatiq.get_broker().enqueue(dramatiq.Message(**message | {"args": ["of another form"]}))
    assert "cannot read the message" in given_back(event).error


def test_a_newer_batch_is_given_back_as_a_whole(batched) -> None:
    events = [publish("versions.one", n) for n in range(2)]
    enqueue_as(NEXT, events[0])
    for event in events:
        assert f"version {NEXT}" in given_back(event).error
    assert batched == []


def test_a_message_of_before_the_oldest_is_sent_again_in_a_form_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = publish("flaky.once")
    enqueue_as(versions.OLDEST - 1, event)
    assert f"reads none before {versions.OLDEST}" in given_back(event).error
    make_due(event)
    relay_all()
    with worker():
        assert finish(event) == {"flaky": "succeeded"}


@pytest.fixture
def dead_letters() -> Iterator[list[dramatiq.MessageProxy]]:
    """Return the dead letters of the queue, which is empty."""
    letters = dramatiq.get_broker().dead_letters_by_queue[QUEUE]
    letters.clear()
    yield letters
    letters.clear()


def test_without_confirmations_a_newer_message_goes_to_the_dead_letters(settings, dead_letters) -> None:
    settings.OUTBOX = {"CONFIRM": False}
    event = publish("flaky.once")
    enqueue_as(NEXT, event)
    with worker():
        wait_until(lambda: dead_letters, what="the dead letter")
    assert [message.message_id for message in dead_letters] == [message_id(event)]
    assert not Effect.objects.exists()


def message_id(event: Event) -> str:
    return outbox.actors.message_id(event.pk, "flaky")


MALFORMATIONS = {
    "a version that is text": {"v": "1"},
    "no version": {"v": None},
    "no delivery": {"delivery": None, "pack": 7},
    "an event that is none": {"event": "text"},
    "an id that is none": {"event": {"id": 7}},
}


@pytest.mark.parametrize("changes", MALFORMATIONS.values(), ids=MALFORMATIONS.keys())
def test_a_malformed_message_is_logged_and_goes_to_the_dead_letters_without_a_run(
    changes: dict, caplog: pytest.LogCaptureFixture, dead_letters: list
) -> None:
    event = publish("flaky.once")
    relay_all()
    (message,) = sent()
    dramatiq.get_broker().flush_all()
    message["options"]["outbox"] |= changes
    dramatiq.get_broker().enqueue(dramatiq.Message(**message))
    with worker():
        wait_until(lambda: dead_letters, what="the dead letter")
    flush()
    assert [letter.message_id for letter in dead_letters] == [message_id(event)]
    assert "traceback" not in dead_letters[0].options
    assert "malformed outbox options" in caplog.text
    assert not Effect.objects.exists()
    # Nobody knows whose message it was, so the relay sends it again once its confirmation is overdue.
    assert statuses(event) == {"flaky": "dispatched"}


def test_a_message_without_outbox_options_passes_untouched(dead_letters: list) -> None:
    @dramatiq.actor(actor_name="stranger", queue_name=QUEUE)
    def stranger() -> None:
        Effect.objects.create(handler="stranger", event_id=uuid4())

    stranger.send()
    with worker():
        wait_until(Effect.objects.filter(handler="stranger").exists, what="the other producer's message")
    assert dead_letters == []
    del dramatiq.get_broker().actors["stranger"]
