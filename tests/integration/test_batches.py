"""Batch handlers: events wait in the table until their batch is full, or until the batch wait has passed."""

import json
from datetime import timedelta

import dramatiq
import pytest
from django.db import transaction
from django.db.models.signals import post_save

import outbox
from outbox.models import Delivery, Event, HandlerStats
from outbox.observability.telemetry import batch_dispatched
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from relay.claim import Claim
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Product

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batches():
    """Return the payloads of each call of the batch handler."""
    seen: list[list] = []
    options = {"queue_name": QUEUE, "name": "batched", "min_backoff": 5, "max_backoff": 5}

    @outbox.handler("click.*", batch_size=3, batch_wait=timedelta(hours=1), **options)
    def batched(events):
        seen.append([event.payload for event in events])
        if any(event.payload == "bad" for event in events):
            raise ValueError("one event is bad")

    dramatiq.get_broker().flush_all()
    yield seen
    registry.remove("batched")
    flush()
    dramatiq.get_broker().flush_all()


def end_batch_wait(event: Event) -> None:
    Delivery.objects.filter(event=event).update(available_at=event.created_at)


def sent_messages() -> int:
    return dramatiq.get_broker().queues[QUEUE].qsize()


def test_a_batch_that_is_not_full_waits(batches):
    publish("click.button", 1)
    publish("click.button", 2)
    relay_all()
    assert set(Delivery.objects.values_list("state", "waits_for")) == {("pending", "batch")}
    assert sent_messages() == 0


def test_a_full_batch_is_one_message_with_its_events_in_order(batches):
    with transaction.atomic():
        events = outbox.publish_many([{"topic": "click.button", "payload": n} for n in range(7)])
    relay_all()
    assert sent_messages() == 2
    assert list(Delivery.objects.filter(state="pending").values_list("event_id", flat=True)) == [events[6].pk]
    with worker():
        for event in events[:6]:
            assert finish(event) == {"batched": "succeeded"}
    assert sorted(batches) == [[0, 1, 2], [3, 4, 5]]


def test_a_batch_that_becomes_ready_during_a_backlog_is_dispatched_at_its_end(batches, monkeypatch):
    def fill_a_batch(**_):
        # The first check has found no batch.
        if len(checks) != 1 or Delivery.objects.filter(waits_for="batch").exists():
            return
        with transaction.atomic():
            outbox.publish_many([{"topic": "click.button", "payload": n} for n in range(3)])

    ready_in, checks = Claim.ready_in, []
    monkeypatch.setattr(Claim, "ready_in", lambda *args: checks.append(None) or ready_in(*args))
    with transaction.atomic():
        outbox.publish_many([{"topic": "test.recorded", "payload": n} for n in range(5)])
    batch_dispatched.connect(fill_a_batch)
    try:
        # The clock stands still, so that the time of the next check for a batch never comes.
        relay_all(batch_size=1, clock=lambda: 1000.0)
    finally:
        batch_dispatched.disconnect(fill_a_batch)
    assert not Delivery.objects.pending().exists()
    # The relay checks before and after the ten rounds of the backlog, but not in each round.
    assert 2 <= len(checks) <= 4


def test_a_batch_runs_when_its_oldest_event_has_waited_long_enough(batches):
    event = publish("click.button", 1)
    later = publish("click.button", 2)
    end_batch_wait(event)
    relay_all()
    with worker():
        finish(event)
        finish(later)
    assert batches == [[1, 2]]


def test_an_event_that_is_not_due_joins_no_batch(batches):
    for n in range(2):
        publish("click.button", n)
    publish("click.button", "later", delay=timedelta(hours=2))
    relay_all()
    assert sent_messages() == 0


def test_only_the_bad_event_of_a_batch_fails(batches):
    good, bad, other = (publish("click.button", payload) for payload in ("good", "bad", "other"))
    relay_all()
    with worker():
        wait_until(lambda: waiting_for("batch") == 3, what="the batch to wait for its retry")
    wait_until(lambda: relay_all() or waiting_for("batch") == 0, what="the dispatch of the retry")
    with worker():
        wait_until(lambda: waiting_for("") == 3, what="the batch to be split")
        assert len(batches) == 2
        assert set(Delivery.objects.values_list("message_options", flat=True)) == {None}
        registry.get("batched").actor.options["max_retries"] = 1
        assert finish_with_retries(good) == {"batched": "succeeded"}
        assert finish_with_retries(other) == {"batched": "succeeded"}
        assert finish_with_retries(bad) == {"batched": "failed"}
    assert "one event is bad" in bad.deliveries.get().error
    assert batches[:2] == [["good", "bad", "other"]] * 2
    assert sorted(batches[2:]) == [["bad"], ["bad"], ["good"], ["other"]]


def waiting_for(condition: str) -> int:
    flush()
    return Delivery.objects.pending().filter(waits_for=condition).count()


def test_each_event_of_a_batch_is_counted(batches):
    events = [publish("click.button", n) for n in range(3)]
    relay_all()
    with worker():
        for event in events:
            finish(event)
    flush()
    stats = HandlerStats.objects.merged()["batched"]
    assert (stats.dispatched, stats.succeeded, sum(stats.histogram)) == (3, 3, 3)


def test_a_batch_receiver_gets_a_list_of_sends():
    seen = []

    @outbox.receiver(post_save, sender=Product, batch_size=2, queue_name=QUEUE, name="batched_receiver")
    def batched_receiver(sends):
        seen.extend((send["instance"].name, send["created"]) for send in sends)

    try:
        with transaction.atomic():
            for name in ("a", "b"):
                Product.objects.create(name=name)
        relay_all()
        with worker():
            for event in Event.objects.all():
                finish(event)
    finally:
        registry.remove("batched_receiver")
        unsubscribe("batched_receiver")
    assert seen == [("a", True), ("b", True)]


def test_the_message_of_a_batch_contains_its_payloads_and_deliveries(batches):
    with transaction.atomic():
        outbox.publish_many([{"topic": "click.button", "payload": {"ü": [1, None]}} for _ in range(3)])
    relay_all()
    (data,) = list(dramatiq.get_broker().queues[QUEUE].queue)
    message = json.loads(data)
    assert [envelope["payload"] for envelope in message["args"][0]] == [{"ü": [1, None]}] * 3
    assert message["options"]["outbox"]["deliveries"] == list(
        Delivery.objects.order_by("pk").values_list("pk", flat=True)
    )


def test_a_batch_to_a_handler_that_takes_single_events_now_is_sent_singly(batches):
    events = [publish("click.button", n) for n in range(3)]
    relay_all()
    registry.remove("batched")
    seen = []

    @outbox.handler("click.*", queue_name=QUEUE, name="batched")
    def single(event):
        seen.append(event.payload)

    with worker():
        wait_until(
            lambda: flush() or Delivery.objects.pending().count() == 3, what="the batch to return to pending"
        )
        assert set(Delivery.objects.values_list("attempts", "waits_for")) == {(0, "")}
        relay_all()
        assert [finish(event) for event in events] == [{"batched": "succeeded"}] * 3
    assert sorted(seen) == [0, 1, 2]


def test_a_new_batch_handler_gets_the_event_of_an_older_message_in_a_list():
    outbox.handler("click.*", queue_name=QUEUE, name="batched")(lambda event: None)
    event = publish("click.button", 1)
    relay_all()
    registry.remove("batched")
    seen = []

    @outbox.handler("click.*", queue_name=QUEUE, name="batched", batch_size=10)
    def batched(events):
        seen.append([event.payload for event in events])

    try:
        with worker():
            assert finish(event) == {"batched": "succeeded"}
    finally:
        registry.remove("batched")
    assert seen == [[1]]
