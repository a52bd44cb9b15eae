"""Cases found by reviewing: what races, mixes and outages must not do."""

import time
from datetime import timedelta

import dramatiq
import pytest
from django.db import transaction
from django.db.models.signals import post_delete
from dramatiq.brokers.stub import StubBroker

import outbox
from outbox.collectors import unsubscribe
from outbox.models import Delivery, Event, PausedHandler
from outbox.registry import registry
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.housekeeping import Housekeeping
from relay.marking import mark
from tests.helpers import finish, flush, publish, relay_all, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Customer, Effect, Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def declared():
    """Declare handlers that are forgotten after the test."""
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
            lambda: flush() or set(statuses(bad).values()) == {"pending"}, what="the batch to be given back"
        )
        assert not Effect.objects.filter(handler="money").exists()
        relay_all()
        assert finish(good) == {"money_batch": "succeeded"}
        assert finish(bad) == {"money_batch": "failed"}
    assert [effect.event_id for effect in Effect.objects.filter(handler="money")] == [good.pk]


def test_what_a_relay_held_while_its_handler_was_resumed_is_let_go():
    event = publish("test.recorded")
    Delivery.objects.filter(event=event).update(held=Delivery.Held.PAUSE)
    PausedHandler.objects.pause("record_all")
    Housekeeping(database="default").release_held()
    assert dict(event.deliveries.values_list("handler", "held")) == {"record": "", "record_all": "pause"}


def test_deliveries_of_a_handler_that_is_batched_no_longer_go_one_by_one():
    event = publish("test.recorded")
    Delivery.objects.filter(event=event).update(held=Delivery.Held.BATCH)
    Housekeeping(database="default").release_held()
    relay_all()
    assert set(statuses(event).values()) == {"dispatched"}


def test_a_lane_never_has_two_in_flight_though_the_first_commits_late(declared):
    declared("late.*", name="late", ordered=True)(print)
    first, second = publish("late.x", key="a"), publish("late.x", key="a")
    # The second is dispatched while the first one's transaction is still open.
    Delivery.objects.filter(event=second).update(status="dispatched")
    relay_all()
    assert first.deliveries.values_list("status", "held").get() == ("pending", "lane")


def test_a_broker_that_is_away_when_a_retry_is_due_costs_no_retry(declared, monkeypatch):
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
            lambda: flush() or statuses(event) == {"retrying": "pending"},
            what="the delivery to be given back",
        )


def test_a_handler_on_another_broker_is_confirmed_too():
    other = StubBroker(middleware=[])
    try:

        @outbox.handler("other.*", name="elsewhere", broker=other)
        def elsewhere(event): ...

        names = [type(one).__name__ for one in other.middleware]
    finally:
        registry.remove("elsewhere")
    assert names == ["OutboxMiddleware"]


def test_a_slow_broker_keeps_what_it_took(monkeypatch):
    with transaction.atomic():
        outbox.publish_many([{"topic": "flaky.slow"} for _ in range(3)])
    sent = []

    def take_all_the_time(message):
        sent.append(message)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            continue

    monkeypatch.setattr(dramatiq.get_broker(), "enqueue", take_all_the_time)
    with transaction.atomic():
        rows = Claim(database="default", limit=10).take().rows
        outcome = Dispatcher(database="default").send(rows, timeout_s=0.05)
        mark(outcome, database="default", max_attempts=3)
    assert len(sent) == len(outcome.sent) == 1
    assert sorted(Delivery.objects.values_list("status", "attempts")) == [
        ("dispatched", 1),
        ("pending", 0),
        ("pending", 0),
    ]


def test_deleting_a_queryset_is_no_argument_of_the_receiver():
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
    rows.update(status="dispatched")
    rows.reschedule(timedelta(), "a\0b")
    assert rows.get().error == "a\\0b"
    rows.fail("\ud800")
    assert rows.get().status == "failed"
