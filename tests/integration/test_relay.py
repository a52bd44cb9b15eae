"""The whole data flow: a relay and a worker in this process, with Dramatiq's in-memory broker."""

import os
import threading
from contextlib import closing
from datetime import timedelta

import dramatiq
import pytest
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.confirmations import confirmations
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, Event, HandlerStats, ProcessHeartbeat
from outbox.operations.pruning import prune
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.maintenance import Maintenance
from relay.relay_options import RelayOptions
from relay.rounds import Rounds
from relay.stopping import Stop
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, states_of, worker
from tests.support.processes import wait_until
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


def dispatch_due() -> None:
    """Claim and dispatch as a relay does, but without its handling of outages."""
    with Stop() as stop, closing(Dispatcher(database="default")) as dispatcher:
        maintenance = Maintenance(database="default")
        Rounds(
            RelayOptions(database="default"), stop=stop, dispatcher=dispatcher, maintenance=maintenance
        ).dispatch_due()


def effects(handler: str) -> list[Effect]:
    return list(Effect.objects.filter(handler=handler).order_by("pk"))


# ---------------------------------------------------------------- delivery


def test_an_event_reaches_each_of_its_handlers():
    event = publish("test.recorded", {"n": 1}, key="k")
    relay_all()
    with worker():
        assert finish(event) == {"record": "succeeded", "record_all": "succeeded"}
    (effect,) = effects("record")
    assert (effect.event_id, effect.key, effect.detail) == (event.pk, "k", {"payload": {"n": 1}})


def test_a_dispatched_delivery_has_a_time_for_its_confirmation():
    event = publish("test.recorded")
    relay_all()
    delivery = event.deliveries.get(handler="record")
    assert (delivery.state, delivery.attempts) == ("dispatched", 1)
    assert delivery.confirm_by - delivery.dispatched_at == timedelta(hours=1)


def test_a_background_receiver_gets_the_arguments_of_a_plain_one():
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


def test_a_receiver_of_a_deletion_gets_the_deleted_instance():
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


def test_the_delivery_to_a_receiver_is_discarded_when_its_instance_does_not_exist():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1")
    saved = Event.objects.get()
    shipment.__class__.objects.filter(pk=shipment.pk)._raw_delete("default")
    relay_all()
    with worker():
        assert finish(saved) == {"shipment_saved": "discarded"}
    assert f"primary key {shipment.pk}" in saved.deliveries.get().error


def test_a_signal_runs_all_its_background_receivers():
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


def test_a_transactional_actor_runs_with_the_arguments_of_its_call():
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


def test_an_event_published_by_a_handler_carries_the_id_of_its_cause():
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
        assert finish_with_retries(event) == {"flaky": "succeeded"}
    assert event.deliveries.get().attempts == 2
    flush()
    stats = HandlerStats.objects.merged()["flaky"]
    assert (stats.dispatched, stats.succeeded, stats.retried, stats.failed) == (2, 1, 1, 0)
    assert sum(stats.histogram) == 2


def test_a_handler_that_never_succeeds_ends_as_failed_with_its_traceback():
    event = publish("broken.mail", {"n": 1})
    relay_all()
    with worker():
        assert finish_with_retries(event) == {"broken": "failed"}
    delivery = event.deliveries.get()
    assert "Refused: cannot handle {'n': 1}" in delivery.error
    assert "in broken" in delivery.error
    assert delivery.finished_at is not None


def test_retrying_a_failed_delivery_runs_it_again():
    event = publish("broken.mail")
    relay_all()
    with worker():
        finish_with_retries(event)
        Effect.objects.create(handler="repaired", event_id=event.pk)
        assert Delivery.objects.filter(event=event).retry() == 1
        relay_all()
        assert finish_with_retries(event) == {"broken": "succeeded"}


# ---------------------------------------------------------------- failures of the dispatch


def test_a_delivery_that_is_not_due_stays_pending():
    event = publish("test.recorded", delay=timedelta(hours=1))
    relay_all()
    assert set(states_of(event).values()) == {"pending"}


def test_a_relay_with_queues_dispatches_only_to_them():
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    relay_all(queues=(queue,))
    assert states_of(event) == {"record": "pending", "record_all": "dispatched"}


def test_a_delivery_to_an_unknown_handler_stays_pending_with_the_reason():
    event = publish("test.recorded")
    event.deliveries.filter(handler="record").update(handler="from.the.future")
    relay_all()
    delivery = event.deliveries.get(handler="from.the.future")
    assert (delivery.state, delivery.attempts) == ("pending", 0)
    assert "does not know the handler 'from.the.future'" in delivery.error


def test_a_delivery_without_its_event_fails_alone():
    event = publish("test.recorded")
    orphan = Delivery.objects.create(
        event_id="01890000-0000-7000-8000-000000000000", handler="record", queue="q"
    )
    relay_all()
    orphan.refresh_from_db()
    assert orphan.state == "failed"
    assert "does not exist" in orphan.error
    assert set(states_of(event).values()) == {"dispatched"}


def test_a_malformed_actor_event_fails_alone(settings):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 1}
    with transaction.atomic():
        resize.send(1)
        resize.send(2)
    first, second = Event.objects.order_by("pk")
    Event.objects.filter(pk=first.pk).update(payload=["not", "a", "call"])
    relay_all()
    assert (states_of(first), states_of(second)) == ({"resize": "failed"}, {"resize": "dispatched"})
    assert "could not be sent" in first.deliveries.get().error


def test_a_refused_message_is_tried_again_later():
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    relay_all()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts, delivery.refusals) == ("pending", 0, 1)
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
    # Each retry is a dispatch.
    Delivery.objects.update(attempts=12, error="Traceback: the last try")
    first, second, third = refuse_again(), refuse_again(), refuse_again()
    assert [delivery.state for delivery in (first, second, third)] == ["pending", "pending", "failed"]
    assert first.error.startswith("could not be sent: ")
    assert third.error.startswith("could not be sent in 3 attempts: ")
    assert (third.attempts, third.refusals) == (12, 3)


def test_a_retry_resets_the_refusals_of_a_delivery(settings):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    refuse_again()
    assert refuse_again().state == "failed"
    Delivery.objects.retry()
    assert [refuse_again().state, refuse_again().state] == ["pending", "failed"]


def test_a_refusal_with_a_long_error_is_counted(settings, monkeypatch):
    settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
    monkeypatch.setattr("relay.publishers.generic.describe", lambda error: "\0" * 50_000)
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    assert [refuse_again().state, refuse_again().state] == ["pending", "failed"]


def test_a_message_to_an_unknown_actor_costs_no_attempt():
    event = publish("flaky.once")
    relay_all()
    actor = dramatiq.get_broker().actors.pop("flaky")
    try:
        with worker():
            wait_until(lambda: states_of(event) == {"flaky": "pending"}, what="the return to pending")
    finally:
        dramatiq.get_broker().actors["flaky"] = actor
    delivery = event.deliveries.get()
    assert "does not know the handler 'flaky'" in delivery.error
    assert delivery.attempts == 0


def test_a_broker_that_fails_during_a_batch_leaves_every_row_pending(monkeypatch):
    event = publish("test.recorded")

    def fail(*args, **kwargs):
        raise BrokerUnavailable("connection closed")

    monkeypatch.setattr(Dispatcher, "send", fail)
    with pytest.raises(BrokerUnavailable):
        dispatch_due()
    assert set(event.deliveries.values_list("state", "attempts")) == {("pending", 0)}


def test_an_unreachable_broker_is_detected_before_the_claim(monkeypatch):
    publish("test.recorded")

    def fail(self):
        raise BrokerUnavailable("unreachable")

    monkeypatch.setattr(Dispatcher, "probe", fail)
    with CaptureQueriesContext(connection) as queries, pytest.raises(BrokerUnavailable):
        dispatch_due()
    assert len(queries) == 0


@pytest.mark.postgres
def test_a_confirmation_before_the_commit_of_the_relay_counts(monkeypatch):
    event = publish("test.recorded")
    ran = threading.Event()
    send = Dispatcher.send

    def send_and_wait_for_the_worker(self, claimed, **options):
        result = send(self, claimed, **options)
        assert ran.wait(10)
        return result

    monkeypatch.setattr(Dispatcher, "send", send_and_wait_for_the_worker)
    add = confirmations.add
    seen = []

    def add_and_flush(outcome):
        add(outcome)
        seen.append(outcome)
        if len(seen) == 2:
            confirmations.flush()
            ran.set()

    monkeypatch.setattr(confirmations, "add", add_and_flush)
    with worker():
        relay_all()
        assert finish(event) == {"record": "succeeded", "record_all": "succeeded"}


# ---------------------------------------------------------------- several relays


@pytest.mark.postgres
def test_two_relays_never_claim_the_same_delivery():
    with transaction.atomic():
        outbox.publish_many([{"topic": "test.recorded"} for _ in range(200)])
    claims: list[list[int]] = []
    barrier = threading.Barrier(4)

    def claim():
        with transaction.atomic():
            barrier.wait()
            rows = Claim(database="default", limit=60).claim_due().rows
            claims.append([row.delivery_id for row in rows])
            barrier.wait()
        connections.close_all()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claimed = [pk for claim in claims for pk in claim]
    assert len(claimed) == len(set(claimed)) == 240


@pytest.mark.postgres
def test_a_claim_is_limited_in_bytes():
    with transaction.atomic():
        outbox.publish_many(
            [{"topic": "test.recorded", "payload": os.urandom(3000).hex()} for _ in range(10)]
        )
    with transaction.atomic():
        assert 0 < len(Claim(database="default", limit=100, max_bytes=10_000).claim_due().rows) < 8


@pytest.mark.postgres
@pytest.mark.parametrize("part", ["payload", "headers"])
def test_a_claim_counts_the_bytes_of_compressed_json_as_they_are_sent(part):
    with transaction.atomic():
        outbox.publish_many([{"topic": "test.recorded", part: {"text": "x" * 3000}} for _ in range(10)])
    with transaction.atomic():
        assert 0 < len(Claim(database="default", limit=100, max_bytes=10_000).claim_due().rows) < 8


@pytest.fixture
def of_each_kind():
    """Publish to a handler without delivery options, an ordered one and two batch handlers."""
    kinds = {"plain": {}, "ordered": {"ordered": True}, "one": {"batch_size": 1}, "two": {"batch_size": 1}}
    for name, options in kinds.items():
        outbox.handler("stop.*", name=f"stop_{name}", **options)(lambda events: None)
    yield publish("stop.it", key="a")
    for name in kinds:
        outbox.registry.registry.remove(f"stop_{name}")


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_a_stop_finishes_the_batch_in_hand_and_claims_no_other(of_each_kind, batches):
    sent = []

    def stop_after_the_last(count):
        sent.append(count)
        if len(sent) == batches:
            stop.request()

    with Stop() as stop:
        options = RelayOptions(database="default", drain=True, progress=stop_after_the_last)
        Relay(options, stop=stop).run()
    assert len(sent) == batches
    assert list(states_of(of_each_kind).values()).count("dispatched") == batches


def test_deliveries_are_claimed_in_the_order_of_publication():
    with transaction.atomic():
        events = outbox.publish_many([{"topic": "flaky.n", "payload": n} for n in range(20)])
    with transaction.atomic():
        claimed = Claim(database="default", limit=20).claim_due().rows
    assert [row.event_id for row in claimed] == [str(event.pk) for event in events]


# ---------------------------------------------------------------- maintenance


def test_a_relay_writes_heartbeats_and_signs_off(monkeypatch):
    seen = []
    sign_off = Maintenance.sign_off

    def read_and_sign_off(self):
        seen.append(list(ProcessHeartbeat.objects.alive().values_list("state", "dispatched")))
        sign_off(self)

    monkeypatch.setattr(Maintenance, "sign_off", read_and_sign_off)
    publish("test.recorded")
    relay_all()
    assert seen == [[("running", 2)]]
    assert not ProcessHeartbeat.objects.exists()


def test_a_delivery_without_a_confirmation_is_redelivered_and_then_fails(settings):
    settings.OUTBOX = {"CONFIRM_TIMEOUT": 0.001, "MAX_REDELIVERIES": 1}
    event = publish("flaky.mail")
    relay_all()
    maintenance = Maintenance(database="default")
    maintenance.redeliver()
    assert event.deliveries.values_list("state", "redeliveries").get() == ("pending", 1)
    relay_all()
    maintenance.redeliver()
    delivery = event.deliveries.get()
    assert delivery.state == "failed"
    assert "never confirmed: 2 dispatches" in delivery.error


def test_pruning_keeps_unfinished_and_recently_failed_deliveries(settings):
    settings.OUTBOX = {"RETENTION": 0}
    done, _waiting, failed = (publish("flaky.mail", name) for name in ("done", "waiting", "failed"))
    Delivery.objects.filter(event=done).update(state="succeeded")
    Delivery.objects.filter(event=failed).update(state="failed", finished_at=Now())
    publish("nobody.listens")
    assert prune("default") == 2
    assert set(Event.objects.values_list("payload", flat=True)) == {"waiting", "failed"}
    settings.OUTBOX = {"RETENTION": 0, "FAILED_RETENTION": 0}
    assert prune("default") == 1
    assert Delivery.objects.count() == 1


def test_a_message_whose_delivery_was_deleted_runs():
    event = publish("test.recorded")
    relay_all()
    Delivery.objects.all().delete()
    other = publish("flaky.mail")
    relay_all()
    with worker():
        finish_with_retries(other)
    assert effects("record")[0].event_id == event.pk
