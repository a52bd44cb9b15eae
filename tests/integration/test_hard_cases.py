"""Cases found in reviews: races, combined options and outages."""

import time
from datetime import timedelta

import dramatiq
import pytest
from django.db import transaction
from django.db.models.signals import post_delete
from dramatiq.brokers.stub import StubBroker

import outbox
from outbox.models import Delivery, Event, PausedHandler
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.maintenance import Maintenance
from relay.marking import mark
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, states_of, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Customer, Effect, Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def declared():
    """Declare handlers that are removed after the test."""
    names = []

    def declare(*topics, name, **options):
        names.append(name)
        return outbox.handler(*topics, name=name, **{"queue_name": QUEUE, **options})

    dramatiq.get_broker().flush_all()
    yield declare
    for name in names:
        registry.remove(name)
    flush()
    dramatiq.get_broker().flush_all()


def test_a_failed_transactional_batch_leaves_no_effect_and_no_success(declared):
    @declared(
        "money.*",
        name="money_batch",
        transactional=True,
        batch_size=2,
        batch_wait=0,
        max_retries=1,
        min_backoff=5,
        max_backoff=5,
    )
    def money_batch(events):
        for event in events:
            Effect.objects.create(handler="money", event_id=event.id)
            if event.payload == "bad":
                raise ValueError("bad")

    bad, good = publish("money.x", "bad"), publish("money.x", "good")
    relay_all()
    with worker():
        wait_until(
            lambda: flush() or set(states_of(bad).values()) == {"pending"},
            what="the batch to be returned to pending",
        )
        assert not Effect.objects.filter(handler="money").exists()
        assert finish_with_retries(good) == {"money_batch": "succeeded"}
        assert finish_with_retries(bad) == {"money_batch": "failed"}
    assert [effect.event_id for effect in Effect.objects.filter(handler="money")] == [good.pk]


def test_a_delivery_put_to_wait_while_its_handler_is_resumed_becomes_due():
    event = publish("test.recorded")
    Delivery.objects.filter(event=event).update(waits_for=Delivery.WaitsFor.RESUME)
    PausedHandler.objects.pause("record_all")
    Maintenance(database="default").end_stale_waits()
    assert dict(event.deliveries.values_list("handler", "waits_for")) == {
        "record": "",
        "record_all": "resume",
    }


def test_deliveries_of_a_handler_that_no_longer_has_batches_become_due():
    event = publish("test.recorded")
    Delivery.objects.filter(event=event).update(waits_for=Delivery.WaitsFor.BATCH)
    Maintenance(database="default").end_stale_waits()
    relay_all()
    assert set(states_of(event).values()) == {"dispatched"}


def test_a_key_has_one_dispatched_delivery_even_if_the_first_commits_late(declared):
    declared("late.*", name="late", ordered=True)(print)
    first, second = publish("late.x", key="a"), publish("late.x", key="a")
    # The second delivery was dispatched while the transaction of the first was still open.
    Delivery.objects.filter(event=second).update(state="dispatched")
    relay_all()
    assert first.deliveries.values_list("state", "waits_for").get() == ("pending", "key")


def test_a_retry_is_stored_while_the_broker_is_away(declared, monkeypatch):
    @declared("retry.*", name="retrying", max_retries=5, min_backoff=5, max_backoff=5)
    def retrying(event):
        raise ValueError("once")

    event = publish("retry.x")
    relay_all()

    def away(*args, **kwargs):
        raise ConnectionError("away")

    monkeypatch.setattr(dramatiq.get_broker(), "enqueue", away)
    with worker():
        wait_until(
            lambda: flush() or states_of(event) == {"retrying": "pending"},
            what="the delivery to be returned to pending",
        )


def test_another_broker_of_a_handler_gets_the_middleware():
    other = StubBroker(middleware=[])
    try:

        @outbox.handler("other.*", name="elsewhere", broker=other)
        def elsewhere(event): ...

        names = [type(one).__name__ for one in other.middleware]
    finally:
        registry.remove("elsewhere")
    assert names == ["OutboxMiddleware"]


def test_messages_that_a_slow_broker_accepted_are_dispatched(monkeypatch):
    with transaction.atomic():
        outbox.publish_many([{"topic": "flaky.slow"} for _ in range(3)])
    sent = []

    def enqueue_slowly(message):
        sent.append(message)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            continue

    monkeypatch.setattr(dramatiq.get_broker(), "enqueue", enqueue_slowly)
    with transaction.atomic():
        rows = Claim(database="default", limit=10).claim_due().rows
        result = Dispatcher(database="default").send(rows, timeout_s=0.05)
        mark(result, database="default", max_attempts=3)
    assert len(sent) == len(result.sent) == 1
    assert sorted(Delivery.objects.values_list("state", "attempts")) == [
        ("dispatched", 1),
        ("pending", 0),
        ("pending", 0),
    ]


def test_the_origin_of_a_deletion_is_none_if_it_is_a_queryset():
    seen = []

    @outbox.receiver(post_delete, sender=Order, queue_name=QUEUE, name="order_deleted")
    def order_deleted(sender, instance, origin, **kwargs):
        seen.append((instance.note, origin))

    try:
        with transaction.atomic():
            customer = Customer.objects.create(name="c", email="c@example.com")
            Order.objects.create(customer=customer, note="gone")
        with transaction.atomic():
            Order.objects.filter(customer=customer).delete()
        relay_all()
        with worker():
            finish(Event.objects.get())
    finally:
        unsubscribe("order_deleted")
        registry.remove("order_deleted")
    assert seen == [("gone", None)]


def test_an_error_with_a_nul_does_not_stop_the_relay():
    event = publish("flaky.mail")
    rows = Delivery.objects.filter(event=event)
    rows.update(state="dispatched")
    rows.reschedule(timedelta(), "a\0b")
    assert rows.get().error == "a\\0b"
    rows.fail("\ud800")
    assert rows.get().state == "failed"
