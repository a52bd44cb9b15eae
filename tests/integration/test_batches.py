"""Batched handlers: events wait in the table until their batch is full or has waited long enough."""

import json
from datetime import timedelta

import dramatiq
import pytest
from django.db import transaction
from django.db.models.signals import post_save

import outbox
from outbox.collectors import unsubscribe
from outbox.lifecycle import batch_dispatched
from outbox.models import Delivery, Event, HandlerStats
from outbox.registry import registry
from relay.claim import Claim
from tests.helpers import finish, flush, publish, relay_all, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Product

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batches():
    """Return the payload lists that the batched handler of the test has seen."""
    seen: list[list] = []
    options = {"queue_name": QUEUE, "name": "batched", "min_backoff": 5, "max_backoff": 5}

    @outbox.handler("click.*", batch_size=3, batch_wait=timedelta(hours=1), **options)
    def batched(events):
        seen.append([event.payload for event in events])
        if any(event.payload == "bad" for event in events):
            raise ValueError("a bad one is among them")

    dramatiq.get_broker().flush_all()
    yield seen
    registry.remove("batched")
    flush()
    dramatiq.get_broker().flush_all()


def let_wait_pass(event: Event) -> None:
    Delivery.objects.filter(event=event).update(available_at=event.created_at)


def sent_messages() -> int:
    return dramatiq.get_broker().queues[QUEUE].qsize()


def test_a_batch_that_is_not_full_waits(batches):
    publish("click.button", 1)
    publish("click.button", 2)
    relay_all()
    assert set(Delivery.objects.values_list("status", "held")) == {("pending", "batch")}
    assert sent_messages() == 0


def test_a_full_batch_is_one_message_with_its_events_in_order(batches):
    with transaction.atomic():
        events = outbox.publish_many([{"topic": "click.button", "payload": n} for n in range(7)])
    relay_all()
    assert sent_messages() == 2
    assert list(Delivery.objects.filter(status="pending").values_list("event_id", flat=True)) == [
        events[6].pk
    ]
    with worker():
        for event in events[:6]:
            assert finish(event) == {"batched": "succeeded"}
    assert sorted(batches) == [[0, 1, 2], [3, 4, 5]]


def test_a_batch_that_gets_ripe_while_a_backlog_is_worked_off_runs_at_its_end(batches, monkeypatch):
    def fill_a_batch(**_):
        # Once the first look for one has found none.
        if len(asked) != 1 or Delivery.objects.filter(held="batch").exists():
            return
        with transaction.atomic():
            outbox.publish_many([{"topic": "click.button", "payload": n} for n in range(3)])

    monkeypatch.setattr("relay.loop.BATCHES_INTERVAL_S", 600.0)
    ask, asked = Claim.ripe_in, []
    monkeypatch.setattr(Claim, "ripe_in", lambda *args: asked.append(None) or ask(*args))
    with transaction.atomic():
        outbox.publish_many([{"topic": "test.recorded", "payload": n} for n in range(5)])
    batch_dispatched.connect(fill_a_batch)
    try:
        relay_all(batch_size=1)
    finally:
        batch_dispatched.disconnect(fill_a_batch)
    assert not Delivery.objects.pending().exists()
    # Before the ten rounds of the backlog and after them, until nothing is left, but not at each.
    assert 2 <= len(asked) <= 4


def test_a_batch_runs_when_its_oldest_event_has_waited(batches):
    event = publish("click.button", 1)
    later = publish("click.button", 2)
    let_wait_pass(event)
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


def test_one_bad_event_is_found_and_harms_nobody(batches):
    good, bad, other = (publish("click.button", payload) for payload in ("good", "bad", "other"))
    relay_all()
    with worker():

        def given_back():
            flush()
            return not Delivery.objects.filter(status="dispatched").exists()

        wait_until(given_back, what="the batch to be given back")
        assert len(batches) == 2
        registry.get("batched").actor.options["max_retries"] = 1
        relay_all()
        assert finish(good) == {"batched": "succeeded"}
        assert finish(other) == {"batched": "succeeded"}
        assert finish(bad) == {"batched": "failed"}
    assert "a bad one is among them" in bad.deliveries.get().error
    assert batches[:2] == [["good", "bad", "other"]] * 2
    assert sorted(batches[2:]) == [["bad"], ["bad"], ["good"], ["other"]]


def test_a_batch_counts_each_of_its_events(batches):
    events = [publish("click.button", n) for n in range(3)]
    relay_all()
    with worker():
        for event in events:
            finish(event)
    flush()
    stats = HandlerStats.objects.get(handler="batched")
    assert (stats.dispatched, stats.succeeded, sum(stats.histogram)) == (3, 3, 3)


def test_a_batched_receiver_gets_a_list_of_its_sends():
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


def test_a_batch_survives_json(batches):
    with transaction.atomic():
        outbox.publish_many([{"topic": "click.button", "payload": {"ü": [1, None]}} for _ in range(3)])
    relay_all()
    (data,) = list(dramatiq.get_broker().queues[QUEUE].queue)
    message = json.loads(data)
    assert [envelope["payload"] for envelope in message["args"][0]] == [{"ü": [1, None]}] * 3
    assert message["options"]["outbox"]["deliveries"] == list(
        Delivery.objects.order_by("pk").values_list("pk", flat=True)
    )
