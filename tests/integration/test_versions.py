"""Rows and messages of a version that a process cannot read wait for a process that can."""

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
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, states_of, worker
from tests.support.processes import wait_until
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
    """Return the payloads that an ordered handler has received."""
    seen = []

    @outbox.handler("versions.*", name="versions", ordered=True, queue_name=QUEUE)
    def see(event):
        seen.append(event.payload)

    yield seen
    registry.remove("versions")


@pytest.fixture
def batched():
    """Return the lists of payloads that a batch handler has received."""
    seen = []
    options = {"batch_size": 2, "batch_wait": timedelta(hours=1), "queue_name": QUEUE}

    @outbox.handler("versions.*", name="versions", **options)
    def see(events):
        seen.append([event.payload for event in events])

    yield seen
    registry.remove("versions")


def publish_next(payload=None, *, topic="flaky.once", **options):
    """Publish as a release that writes the next version."""
    event = publish(topic, payload, **options)
    Event.objects.filter(pk=event.pk).update(version=NEXT)
    return event


def sent() -> list[dict]:
    return [json.loads(body) for body in dramatiq.get_broker().queues[QUEUE].queue]


def make_due(event: Event) -> None:
    event.deliveries.update(available_at=event.created_at)


def enqueue_as(version: object, event: Event) -> None:
    """Dispatch an event, and change the version in its message."""
    relay_all()
    (message,) = sent()
    dramatiq.get_broker().flush_all()
    message["options"]["outbox"]["v"] = version
    dramatiq.get_broker().enqueue(dramatiq.Message(**message))


def returned(event: Event) -> Delivery:
    """Run a worker until it has returned the only delivery of an event to pending."""
    with worker():

        def pending() -> Delivery | None:
            flush()
            return event.deliveries.filter(state="pending").first()

        return wait_until(pending, what="the delivery to be returned to pending")


# ---------------------------------------------------------------- the constants


def test_a_release_reads_what_it_writes_and_what_its_neighbours_write() -> None:
    assert 1 <= versions.OLDEST <= max(versions.WRITTEN - 1, 1)
    assert versions.WRITTEN <= versions.NEWEST <= versions.WRITTEN + 1


@pytest.mark.parametrize("version", range(versions.OLDEST, versions.NEWEST + 1))
def test_every_version_between_the_bounds_is_read(version: int) -> None:
    assert versions.why_unreadable(version) == ""


def test_a_row_without_a_version_has_the_first_version() -> None:
    default = Event._meta.get_field("version").db_default
    assert (default.value if isinstance(default, models.Value) else default) == versions.UNWRITTEN == 1


# ---------------------------------------------------------------- rows


def test_a_published_event_has_the_written_version() -> None:
    one = publish("topic.without_handler")
    once = publish("topic.without_handler", dedup_key="once")
    assert {Event.objects.get(pk=event.pk).version for event in (one, once)} == {versions.WRITTEN}


def test_a_newer_row_stays_pending_with_the_reason_and_costs_no_attempt() -> None:
    newer, other = publish_next(), publish("flaky.once")
    relay_all()
    delivery = newer.deliveries.get()
    assert (delivery.state, delivery.attempts) == ("pending", 0)
    assert f"it is of version {NEXT}, and this process reads none after {versions.NEWEST}" in delivery.error
    assert delivery.available_at > newer.created_at
    assert states_of(other) == {"flaky": "dispatched"}
    assert len(sent()) == 1


def test_an_older_relay_does_not_discard_an_expired_newer_row() -> None:
    event = publish_next(expires=timedelta(milliseconds=1))
    event.deliveries.update(expires_at=event.created_at)
    relay_all()
    assert states_of(event) == {"flaky": "pending"}


def test_a_relay_that_reads_the_version_dispatches_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    event = publish_next()
    relay_all()
    monkeypatch.setattr(versions, "NEWEST", NEXT)
    make_due(event)
    relay_all()
    with worker():
        assert finish_with_retries(event) == {"flaky": "succeeded"}


def test_the_message_of_a_newer_row_has_the_version_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NEWEST", NEXT)
    publish_next()
    publish("flaky.once")
    relay_all()
    assert sorted(message["options"]["outbox"]["v"] for message in sent()) == [versions.WRITTEN, NEXT]


def test_a_newer_row_blocks_its_ordering_key(ordered, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish_next(1, topic="versions.one", key="order-7")
    second = publish("versions.one", 2, key="order-7")
    relay_all()
    assert sent() == []
    assert states_of(second) == {"versions": "pending"}
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
    assert states_of(newer) == {"versions": "pending"}
    with worker():
        assert finish(older) == {"versions": "succeeded"}
    assert batched == [["older"]]


@pytest.mark.postgres
def test_the_version_takes_no_additional_statement() -> None:
    with CaptureQueriesContext(connection) as statements:
        publish("flaky.once")
    written = [query["sql"] for query in statements if "outbox_event" in query["sql"]]
    assert len(written) == 1


# ---------------------------------------------------------------- messages


def test_a_newer_message_is_returned_to_pending_with_the_reason_and_does_not_run() -> None:
    event = publish("flaky.once")
    enqueue_as(NEXT, event)
    delivery = returned(event)
    assert f"a worker cannot read the message: it is of version {NEXT}" in delivery.error
    assert delivery.available_at > event.created_at + timedelta(seconds=20)
    assert delivery.attempts == 0
    assert not Effect.objects.exists()


def test_a_newer_message_with_unknown_envelopes_is_returned_to_pending() -> None:
    event = publish("flaky.once")
    relay_all()
    (message,) = sent()
    dramatiq.get_broker().flush_all()
    message["options"]["outbox"]["v"] = NEXT
    envelope = {"id": str(event.pk), "subject": "of another form"}
    dramatiq.get_broker().enqueue(dramatiq.Message(**message | {"args": [envelope]}))
    assert "cannot read the message" in returned(event).error


def test_all_deliveries_of_a_newer_batch_are_returned_to_pending(batched) -> None:
    events = [publish("versions.one", n) for n in range(2)]
    enqueue_as(NEXT, events[0])
    for event in events:
        assert f"version {NEXT}" in returned(event).error
    assert batched == []


def test_a_message_before_the_oldest_version_is_dispatched_again_in_a_readable_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = publish("flaky.once")
    enqueue_as(versions.OLDEST - 1, event)
    assert f"reads none before {versions.OLDEST}" in returned(event).error
    make_due(event)
    relay_all()
    with worker():
        assert finish_with_retries(event) == {"flaky": "succeeded"}


@pytest.fixture
def dead_letters() -> Iterator[list[dramatiq.MessageProxy]]:
    """Return the dead letters of the queue, none at first."""
    messages = dramatiq.get_broker().dead_letters_by_queue[QUEUE]
    messages.clear()
    yield messages
    messages.clear()


def message_id(event: Event) -> str:
    return outbox.subscribing.actors.message_id(event.pk, "flaky")


MALFORMATIONS = {
    "a version that is text": {"v": "1"},
    "no version": {"v": None},
    "no delivery": {"delivery": None, "deliveries": 7},
    "an event that is none": {"event": "text"},
    "an id that is none": {"event": {"id": 7}},
    "fewer events than deliveries": {"deliveries": [1, 2, 3], "event": None},
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
    assert [message.message_id for message in dead_letters] == [message_id(event)]
    assert "traceback" not in dead_letters[0].options
    assert "malformed outbox options" in caplog.text
    assert not Effect.objects.exists()
    # Its delivery is unknown to the worker, so the relay redelivers it when its confirmation is overdue.
    assert states_of(event) == {"flaky": "dispatched"}


def test_a_message_without_outbox_options_is_not_changed(dead_letters: list) -> None:
    @dramatiq.actor(actor_name="stranger", queue_name=QUEUE)
    def stranger() -> None:
        Effect.objects.create(handler="stranger", event_id=uuid4())

    stranger.send()
    with worker():
        wait_until(Effect.objects.filter(handler="stranger").exists, what="the other producer's message")
    assert dead_letters == []
    del dramatiq.get_broker().actors["stranger"]
