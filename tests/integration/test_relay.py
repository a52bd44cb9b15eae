"""The relay and a worker in this process, over Dramatiq's broker in memory: the whole loop."""

import os
import threading
from datetime import timedelta

import dramatiq
import pytest
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.confirmations import confirmations
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, Event, HandlerStats, RelayHeartbeat
from outbox.pruning import prune
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.housekeeping import Housekeeping
from tests.helpers import finish, flush, publish, relay_all, relaying, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import seen_in_async_code
from tests.testapp.models import Effect, Shipment
from tests.testapp.signals import order_paid
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


def effects(handler: str) -> list[Effect]:
    return list(Effect.objects.filter(handler=handler).order_by("pk"))


# ---------------------------------------------------------------- the main job


def test_an_event_reaches_each_of_its_handlers():
    event = publish("test.recorded", {"n": 1}, key="k")
    relay_all()
    with worker():
        assert finish(event) == {"record": "succeeded", "record_all": "succeeded"}
    (effect,) = effects("record")
    assert (effect.event_id, effect.key, effect.detail) == (event.pk, "k", {"payload": {"n": 1}})


def test_a_dispatched_delivery_knows_when_it_must_be_confirmed():
    event = publish("test.recorded")
    relay_all()
    delivery = event.deliveries.get(handler="record")
    assert (delivery.status, delivery.attempts) == ("dispatched", 1)
    assert delivery.confirm_by - delivery.dispatched_at == timedelta(hours=1)


def test_a_background_receiver_gets_what_django_gives():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1", weight="1.250")
    relay_all()
    with worker():
        finish(Event.objects.get())
    (effect,) = effects("shipment_saved")
    assert effect.detail == {
        "sender": "Shipment",
        "created": True,
        "raw": False,
        "using": "default",
        "signal": True,
        "weight": "1.250",
    }
    assert effect.key == shipment.address


def test_a_receiver_of_a_deletion_gets_the_instance_as_it_was():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1")
    pk = shipment.pk
    with transaction.atomic():
        shipment.delete()
    relay_all()
    with worker():
        for event in Event.objects.all():
            finish(event)
    (effect,) = effects("shipment_deleted")
    assert (effect.key, effect.detail) == ("Hill 1", {"pk": pk})


def test_a_receiver_whose_instance_is_gone_is_discarded_with_the_reason():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1")
    saved = Event.objects.get()
    shipment.__class__.objects.filter(pk=shipment.pk)._raw_delete("default")
    relay_all()
    with worker():
        assert finish(saved) == {"shipment_saved": "discarded"}
    assert f"primary key {shipment.pk}" in saved.deliveries.get().error


def test_one_send_runs_all_three_receivers():
    with transaction.atomic():
        order_paid.send(sender=None, order_id=7)
    relay_all()
    with worker():
        finish(Event.objects.get())
    assert {effect.handler for effect in Effect.objects.all()} == {
        "paid_mail",
        "paid_stock",
        "paid_analytics",
    }


def test_a_transactional_actor_runs_with_its_own_arguments():
    with transaction.atomic():
        message = resize.send(7, width=20)
    relay_all()
    (sent,) = [
        dramatiq.Message.decode(data) for data in list(dramatiq.get_broker().queues[resize.queue_name].queue)
    ]
    assert sent.message_id == message.message_id
    with worker():
        finish(Event.objects.get())
    (effect,) = effects("resize")
    assert (effect.key, effect.detail, effect.event_id) == ("7", {"width": 20}, Event.objects.get().pk)


def test_a_handler_called_directly_runs_at_once():
    resize(9)
    assert effects("resize")[0].key == "9"


def test_async_handlers_see_the_current_event():
    seen_in_async_code.clear()
    event = publish("context.asked")
    relay_all()
    with worker():
        finish(event)
    assert [current.id for current in seen_in_async_code if current] == [event.pk]


def test_an_event_published_by_a_handler_says_what_caused_it():
    events = []

    @outbox.handler("chain.first", name="chain_first")
    def chain_first(event):
        with transaction.atomic():
            events.append(outbox.publish("nobody.listens"))

    try:
        with outbox.context(tenant="acme"):
            first = publish("chain.first")
        relay_all()
        with worker():
            finish(first)
    finally:
        outbox.registry.registry.remove("chain_first")
    headers = Event.objects.get(pk=events[0].pk).headers
    assert headers == {
        "context": {"tenant": "acme"},
        "correlation_id": str(first.pk),
        "causation_id": str(first.pk),
    }


# ---------------------------------------------------------------- failures of handlers


def test_a_handler_that_fails_once_is_retried_and_succeeds():
    event = publish("flaky.mail")
    relay_all()
    with worker():
        assert finish(event) == {"flaky": "succeeded"}
    flush()
    stats = HandlerStats.objects.get(handler="flaky")
    assert (stats.dispatched, stats.succeeded, stats.retried, stats.failed) == (1, 1, 1, 0)
    assert sum(stats.histogram) == 2


def test_a_handler_that_never_succeeds_ends_as_failed_with_its_traceback():
    event = publish("broken.mail", {"n": 1})
    relay_all()
    with worker():
        assert finish(event) == {"broken": "failed"}
    delivery = event.deliveries.get()
    assert "Refused: cannot handle {'n': 1}" in delivery.error
    assert "in broken" in delivery.error
    assert delivery.finished_at is not None


def test_a_retried_delivery_gets_time_for_its_retry():
    @outbox.handler("patient.mail", name="patient", min_backoff=3_600_000, max_backoff=3_600_000)
    def patient(event):
        raise ValueError("later")

    try:
        event = publish("patient.mail")
        relay_all()
        with worker():
            delivery = event.deliveries
            wait_until(lambda: "later" in delivery.get().error, what="the retry to be reported")
    finally:
        outbox.registry.registry.remove("patient")
    row = delivery.get()
    assert row.status == "dispatched"
    assert row.confirm_by - row.dispatched_at > timedelta(hours=1, minutes=20)


def test_retrying_a_failed_delivery_runs_it_again():
    event = publish("broken.mail")
    relay_all()
    with worker():
        finish(event)
        Effect.objects.create(handler="mended", event_id=event.pk)
        assert Delivery.objects.filter(event=event).retry() == 1
        relay_all()
        assert finish(event) == {"broken": "succeeded"}


# ---------------------------------------------------------------- failures of the way


def test_a_delivery_that_is_not_due_stays():
    event = publish("test.recorded", delay=timedelta(hours=1))
    relay_all()
    assert set(statuses(event).values()) == {"pending"}


def test_a_relay_of_some_queues_leaves_the_others():
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    relay_all(queues=(queue,))
    assert statuses(event) == {"record": "pending", "record_all": "dispatched"}


def test_a_handler_that_the_relay_does_not_know_waits_with_the_reason():
    event = publish("test.recorded")
    event.deliveries.filter(handler="record").update(handler="from.the.future")
    relay_all()
    delivery = event.deliveries.get(handler="from.the.future")
    assert (delivery.status, delivery.attempts) == ("pending", 0)
    assert "does not know the handler 'from.the.future'" in delivery.error


def test_a_delivery_without_its_event_fails_and_harms_nobody():
    event = publish("test.recorded")
    orphan = Delivery.objects.create(
        event_id="01890000-0000-7000-8000-000000000000", handler="record", queue="q"
    )
    relay_all()
    orphan.refresh_from_db()
    assert orphan.status == "failed"
    assert "does not exist" in orphan.error
    assert set(statuses(event).values()) == {"dispatched"}


def test_a_malformed_actor_event_fails_alone(settings):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 1}
    with transaction.atomic():
        resize.send(1)
        resize.send(2)
    first, second = Event.objects.order_by("pk")
    Event.objects.filter(pk=first.pk).update(payload=["not", "a", "call"])
    relay_all()
    assert (statuses(first), statuses(second)) == ({"resize": "failed"}, {"resize": "dispatched"})
    assert "could not be sent" in first.deliveries.get().error


def test_a_refused_message_is_tried_again_later():
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    relay_all()
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.attempts, delivery.refusals) == ("pending", 0, 1)
    assert delivery.available_at > delivery.dispatched_at


def refuse_again():
    Delivery.objects.update(available_at=Now())
    relay_all()
    return Delivery.objects.get()


def test_only_refusals_use_up_the_attempts_to_send(settings):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 3}
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    # As a handler in packs leaves it, whose every try is a dispatch.
    Delivery.objects.update(attempts=12, error="Traceback: the last try")
    first, second, third = refuse_again(), refuse_again(), refuse_again()
    assert [one.status for one in (first, second, third)] == ["pending", "pending", "failed"]
    assert first.error.startswith("could not be sent: ")
    assert third.error.startswith("could not be sent in 3 attempts: ")
    assert (third.attempts, third.refusals) == (12, 3)


def test_a_refused_delivery_that_is_retried_has_all_attempts_again(settings):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    refuse_again()
    assert refuse_again().status == "failed"
    Delivery.objects.retry()
    assert [refuse_again().status, refuse_again().status] == ["pending", "failed"]


def test_a_refusal_in_many_words_is_counted(settings, monkeypatch):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
    monkeypatch.setattr("relay.publishers.generic.describe", lambda error: "\0" * 50_000)
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    assert [refuse_again().status, refuse_again().status] == ["pending", "failed"]


def test_a_message_that_no_worker_knows_uses_up_no_attempt():
    event = publish("flaky.once")
    relay_all()
    actor = dramatiq.get_broker().actors.pop("flaky")
    try:
        with worker():
            wait_until(lambda: statuses(event) == {"flaky": "pending"}, what="it to be given back")
    finally:
        dramatiq.get_broker().actors["flaky"] = actor
    delivery = event.deliveries.get()
    assert "does not know the handler 'flaky'" in delivery.error
    assert delivery.attempts == 0


def test_a_broker_that_breaks_mid_batch_leaves_every_row_pending(monkeypatch):
    event = publish("test.recorded")

    def broken(*args, **kwargs):
        raise BrokerUnavailable("pulled the plug")

    monkeypatch.setattr(Dispatcher, "send", broken)
    with relaying() as relay, pytest.raises(BrokerUnavailable):
        relay.dispatch_batch()
    assert set(event.deliveries.values_list("status", "attempts")) == {("pending", 0)}


def test_a_broker_that_is_away_is_noticed_before_the_claim(monkeypatch):
    publish("test.recorded")

    def away(self):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(Dispatcher, "probe", away)
    with relaying() as relay, CaptureQueriesContext(connection) as queries, pytest.raises(BrokerUnavailable):
        relay.dispatch_batch()
    assert len(queries) == 0


@pytest.mark.postgres
def test_a_confirmation_that_beats_the_commit_of_the_relay_counts(monkeypatch):
    event = publish("test.recorded")
    ran = threading.Event()
    send = Dispatcher.send

    def send_and_wait_for_the_worker(self, claimed, *, timeout_s):
        outcome = send(self, claimed, timeout_s=timeout_s)
        assert ran.wait(10)
        return outcome

    monkeypatch.setattr(Dispatcher, "send", send_and_wait_for_the_worker)
    add = confirmations.add
    seen = []

    def noticed(outcome):
        add(outcome)
        seen.append(outcome)
        if len(seen) == 2:
            confirmations.flush()
            ran.set()

    monkeypatch.setattr(confirmations, "add", noticed)
    with worker():
        relay_all()
        assert finish(event) == {"record": "succeeded", "record_all": "succeeded"}


# ---------------------------------------------------------------- several relays


@pytest.mark.postgres
def test_two_relays_never_claim_the_same_delivery():
    with transaction.atomic():
        outbox.publish_many([{"topic": "test.recorded"} for _ in range(200)])
    taken: list[list[int]] = []
    barrier = threading.Barrier(4)

    def claim():
        with transaction.atomic():
            barrier.wait()
            taken.append([row.delivery_id for row in Claim(database="default", limit=60).take().rows])
            barrier.wait()
        connections.close_all()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flat = [one for batch in taken for one in batch]
    assert len(flat) == len(set(flat)) == 240


@pytest.mark.postgres
def test_a_batch_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr("relay.claim.claiming.MAX_BATCH_BYTES", 10_000)
    with transaction.atomic():
        outbox.publish_many(
            [{"topic": "test.recorded", "payload": os.urandom(3000).hex()} for _ in range(10)]
        )
    with transaction.atomic():
        assert 0 < len(Claim(database="default", limit=100).take().rows) < 8


@pytest.fixture
def of_each_kind():
    """Publish to an ordinary, an ordered and two batched handlers."""
    kinds = {"ordinary": {}, "ordered": {"ordered": True}, "one": {"batch_size": 1}, "two": {"batch_size": 1}}
    for name, options in kinds.items():
        outbox.handler("stop.*", name=f"stop_{name}", **options)(lambda events: None)
    yield publish("stop.it", key="lane")
    for name in kinds:
        outbox.registry.registry.remove(f"stop_{name}")


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_a_relay_that_is_to_stop_finishes_the_batch_in_hand_and_takes_no_other(
    of_each_kind, monkeypatch, batches
):
    sent = []
    with relaying() as relay:

        def stop_at_the_last(outcome):
            sent.append(outcome)
            if len(sent) == batches:
                relay._stop.request()

        monkeypatch.setattr(relay, "_account", stop_at_the_last)
        relay.run()
    assert len(sent) == batches
    assert list(statuses(of_each_kind).values()).count("dispatched") == batches


def test_claims_come_in_the_order_of_publication():
    with transaction.atomic():
        events = outbox.publish_many([{"topic": "flaky.n", "payload": n} for n in range(20)])
    with transaction.atomic():
        claimed = Claim(database="default", limit=20).take().rows
    assert [row.event_id for row in claimed] == [str(event.pk) for event in events]


# ---------------------------------------------------------------- housekeeping


def test_a_relay_says_that_it_lives_and_signs_off(monkeypatch):
    seen = []
    leave = Housekeeping.leave

    def look(self):
        seen.append(list(RelayHeartbeat.objects.alive().values_list("state", "dispatched")))
        leave(self)

    monkeypatch.setattr(Housekeeping, "leave", look)
    publish("test.recorded")
    relay_all()
    assert seen == [[("running", 2)]]
    assert not RelayHeartbeat.objects.exists()


def test_a_delivery_that_nobody_confirms_goes_again_and_then_fails(settings):
    settings.OUTBOX = {"CONFIRM_TIMEOUT": 0.001, "MAX_REDELIVERIES": 1}
    event = publish("flaky.mail")
    relay_all()
    housekeeping = Housekeeping(database="default")
    housekeeping.redeliver()
    assert event.deliveries.values_list("status", "redeliveries").get() == ("pending", 1)
    relay_all()
    housekeeping.redeliver()
    delivery = event.deliveries.get()
    assert delivery.status == "failed"
    assert "never confirmed: 2 dispatches" in delivery.error


def test_pruning_keeps_what_is_not_done(settings):
    settings.OUTBOX = {"RETENTION": 0}
    done, _waiting, failed = (publish("flaky.mail", name) for name in ("done", "waiting", "failed"))
    Delivery.objects.filter(event=done).update(status="succeeded")
    Delivery.objects.filter(event=failed).update(status="failed", finished_at=Now())
    publish("nobody.listens")
    assert prune("default") == 2
    assert set(Event.objects.values_list("payload", flat=True)) == {"waiting", "failed"}
    settings.OUTBOX = {"RETENTION": 0, "FAILED_RETENTION": 0}
    assert prune("default") == 1
    assert Delivery.objects.count() == 1


def test_confirm_off_trusts_the_broker(settings):
    settings.OUTBOX = {"CONFIRM": False}
    event = publish("test.recorded")
    relay_all()
    assert set(statuses(event).values()) == {"succeeded"}
    with worker():
        wait_until(lambda: effects("record"), what="the handler to run")


def test_a_message_for_a_delivery_that_no_longer_exists_runs_and_harms_nobody():
    event = publish("test.recorded")
    relay_all()
    Delivery.objects.all().delete()
    other = publish("flaky.mail")
    relay_all()
    with worker():
        finish(other)
    assert effects("record")[0].event_id == event.pk
