"""`deliver`, `fail_handler` and the unittest mixin, mostly within the transaction of a test."""

import unittest
from datetime import UTC, datetime, timedelta

import dramatiq
import pytest
from django.db import DatabaseError, connection, transaction
from django.test import TestCase

import outbox
from outbox.errors import UnknownHandler
from outbox.models import Delivery, HandlerStats, PausedHandler
from outbox.registry import registry
from outbox.testing import (
    InjectedFailure,
    OutboxTestCaseMixin,
    TooManyDeliveries,
    assert_published,
    deliver,
    fail_handler,
)
from tests.support.data_flow import finish_with_retries, publish, relay_all, states_of, worker
from tests.testapp.handlers import Refused, record, seen_in_async_code
from tests.testapp.models import Effect, Shipment
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db

in_both_kinds_of_tests = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("in the test's transaction", marks=pytest.mark.django_db),
        pytest.param("with real commits", marks=pytest.mark.django_db(transaction=True)),
    ],
)


def handled_by(name):
    return list(Effect.objects.filter(handler=name).order_by("pk").values_list("detail", flat=True))


@pytest.fixture
def declare():
    """Declare handlers that exist until the test ends."""
    names = []

    def declare(topic, name, **options):
        names.append(name)
        return outbox.handler(topic, name=name, **options)

    yield declare
    for name in names:
        registry.remove(name)


# ---------------------------------------------------------------- inline delivery


@in_both_kinds_of_tests
def test_deliver_runs_each_handler_of_an_event(kind):
    event = publish("test.recorded", {"n": 1})
    delivered = deliver()
    assert (delivered.succeeded, delivered.failed) == (2, 0)
    assert handled_by("record") == handled_by("record_all") == [{"payload": {"n": 1}}]
    assert states_of(event) == {"record": "succeeded", "record_all": "succeeded"}
    delivery = event.deliveries.get(handler="record")
    assert delivery.attempts == 1
    assert delivery.finished_at >= delivery.dispatched_at


@in_both_kinds_of_tests
def test_deliver_leaves_nothing_due(kind):
    publish("test.recorded")
    deliver()
    assert deliver().succeeded == 0


def test_a_receiver_gets_the_arguments_that_a_worker_passes():
    with transaction.atomic():
        Shipment.objects.create(address="Hill 1", weight="1.250")
    assert deliver().succeeded == 1
    (detail,) = handled_by("shipment_saved")
    assert (detail["weight"], detail["created"], detail["signal"]) == ("1.250", True, True)


def test_a_delivery_whose_instance_was_deleted_is_discarded():
    with transaction.atomic():
        shipment = Shipment.objects.create(address="Hill 1")
    Shipment.objects.filter(pk=shipment.pk)._raw_delete("default")
    assert deliver().discarded == 1
    assert "no longer exists" in Delivery.objects.get().error


def test_an_actor_runs_with_its_own_arguments():
    with transaction.atomic():
        resize.send(7, width=20)
    deliver()
    (effect,) = Effect.objects.filter(handler="resize")
    assert (effect.key, effect.detail) == ("7", {"width": 20})


def test_payloads_are_encoded_as_json(declare):
    seen = []
    declare("kit.asked", "kit_asked")(lambda event: seen.append(event.payload))
    publish("kit.asked", {"lines": (1, 2), "ü": None})
    deliver()
    assert seen == [{"lines": [1, 2], "ü": None}]


def test_the_event_is_current_until_its_handler_ends(declare):
    seen = []
    declare("kit.asked", "kit_asked")(lambda event: seen.append(outbox.current_event()))
    event = publish("kit.asked")
    deliver()
    assert [current.id for current in seen] == [event.pk]
    assert outbox.current_event() is None


def test_events_that_a_handler_publishes_are_delivered(declare):
    @declare("kit.first", "kit_first")
    def kit_first(event):
        with transaction.atomic():
            outbox.publish("test.recorded", event.payload)

    first = publish("kit.first", 5)
    assert deliver().succeeded == 3
    assert handled_by("record") == [{"payload": 5}]
    assert_published("test.recorded", headers__contains={"causation_id": str(first.pk)})


@in_both_kinds_of_tests
def test_an_async_handler_shares_the_transaction_of_the_test(kind, declare):
    @declare("kit.asked", "kit_asked")
    async def kit_asked(event):
        await Effect.objects.acreate(handler="kit_asked", event_id=event.id)

    publish("kit.asked")
    deliver()
    assert Effect.objects.filter(handler="kit_asked").count() == 1


def test_an_async_handler_sees_its_event():
    seen_in_async_code.clear()
    event = publish("context.asked")
    deliver()
    assert [current.id for current in seen_in_async_code] == [event.pk]


def test_nothing_reaches_the_broker():
    dramatiq.get_broker().flush_all()
    publish("test.recorded")
    publish("broken.mail")
    deliver(raise_errors=False)
    assert all(queue.empty() for queue in dramatiq.get_broker().queues.values())


def test_runs_count_in_the_statistics():
    publish("test.recorded")
    publish("broken.mail")
    deliver(raise_errors=False)
    counts = HandlerStats.objects.values_list("handler", "succeeded", "failed").order_by("handler")
    assert list(counts) == [("broken", 0, 1), ("record", 1, 0), ("record_all", 1, 0)]


def test_only_the_given_handlers_run():
    event = publish("test.recorded")
    assert deliver(handlers=[record]).succeeded == 1
    assert states_of(event) == {"record": "succeeded", "record_all": "pending"}
    with pytest.raises(UnknownHandler, match="did you mean 'record_all'"):
        deliver(handlers=["record_al"])


def test_an_endless_chain_stops_at_the_limit(declare):
    @declare("kit.loop", "kit_loop")
    def kit_loop(event):
        with transaction.atomic():
            outbox.publish("kit.loop")

    publish("kit.loop")
    with pytest.raises(TooManyDeliveries, match="next to 'kit_loop'"):
        deliver(limit=5)
    assert Delivery.objects.filter(state="succeeded").count() == 5
    assert Delivery.objects.get(state="pending").attempts == 0


def test_as_many_messages_as_the_limit_are_no_error():
    publish("test.recorded")
    assert deliver(limit=2).succeeded == 2


# ---------------------------------------------------------------- errors


@in_both_kinds_of_tests
def test_an_error_of_a_handler_is_raised(kind):
    event = publish("broken.mail", 3)
    with pytest.raises(Refused, match="cannot handle 3"):
        deliver()
    assert states_of(event) == {"broken": "failed"}
    assert "cannot handle 3" in event.deliveries.get().error


@in_both_kinds_of_tests
def test_without_raise_errors_errors_are_collected(kind):
    broken, recorded = publish("broken.mail"), publish("test.recorded")
    delivered = deliver(raise_errors=False)
    assert (delivered.failed, delivered.succeeded) == (1, 2)
    assert [type(error) for error in delivered.errors] == [Refused]
    assert states_of(broken) == {"broken": "failed"}
    assert set(states_of(recorded).values()) == {"succeeded"}


def test_a_handler_that_recovers_succeeds_with_a_retry():
    event = publish("flaky.mail")
    delivered = deliver(retries=1)
    assert (delivered.retried, delivered.succeeded, delivered.errors) == (1, 1, [])
    assert states_of(event) == {"flaky": "succeeded"}
    (stats,) = HandlerStats.objects.merged().values()
    assert (stats.retried, stats.succeeded) == (1, 1)


def test_an_expected_error_is_not_retried(declare):
    @declare("kit.asked", "kit_asked", throws=Refused)
    def kit_asked(event):
        raise Refused

    publish("kit.asked")
    delivered = deliver(retries=3, raise_errors=False)
    assert (delivered.retried, delivered.failed) == (0, 1)


def test_a_database_error_of_a_handler_does_not_end_the_transaction_of_the_test(declare):
    @declare("kit.asked", "kit_asked")
    def kit_asked(event):
        Effect.objects.create(handler="kit_asked", key="before")
        with connection.cursor() as cursor:
            cursor.execute("SELECT no_such_column FROM testapp_effect")

    event = publish("kit.asked")
    with pytest.raises(DatabaseError):
        deliver()
    assert states_of(event) == {"kit_asked": "failed"}


def test_rows_that_a_handler_wrote_before_its_error_stay():
    publish("flaky.mail")
    deliver(raise_errors=False)
    assert len(handled_by("flaky-try")) == 1


def test_a_delivery_to_an_unknown_handler_raises():
    event = publish("test.recorded")
    event.deliveries.filter(handler="record").update(handler="recrd")
    with pytest.raises(UnknownHandler, match="did you mean 'record'"):
        deliver()
    assert event.deliveries.get(handler="recrd").state == "failed"


def test_pytest_fail_in_a_handler_fails_the_test(declare):
    declare("kit.asked", "kit_asked")(lambda event: pytest.fail("as asked"))
    publish("kit.asked")
    with pytest.raises(pytest.fail.Exception, match="as asked"):
        deliver(raise_errors=False)
    assert outbox.current_event() is None


# ---------------------------------------------------------------- due times


def test_a_delivery_that_is_not_due_stays_pending():
    event = publish("test.recorded", delay=timedelta(hours=1))
    assert deliver().succeeded == 0
    assert set(states_of(event).values()) == {"pending"}


def test_ahead_runs_deliveries_that_are_due_later():
    publish("test.recorded", delay=timedelta(hours=1))
    assert deliver(ahead=timedelta(minutes=59)).succeeded == 0
    assert deliver(ahead=timedelta(hours=1)).succeeded == 2


def test_now_runs_deliveries_that_are_due_by_that_moment():
    eta = datetime(2150, 1, 1, tzinfo=UTC)
    publish("test.recorded", eta=eta)
    assert deliver(now=eta - timedelta(seconds=1)).succeeded == 0
    assert deliver(now=eta).succeeded == 2


def test_a_now_in_the_past_postpones_no_delivery():
    publish("test.recorded")
    assert deliver(now=datetime(2000, 1, 1, tzinfo=UTC)).succeeded == 2


def test_deliveries_run_in_the_order_of_their_due_times():
    publish("flaky.mail", "late", delay=timedelta(hours=2))
    publish("flaky.mail", "early", delay=timedelta(hours=1))
    deliver(ahead=timedelta(hours=3), retries=1)
    assert handled_by("flaky") == [{"payload": "early"}, {"payload": "late"}]


# ---------------------------------------------------------------- ordering keys, expiry, pauses


@pytest.fixture
def steps(declare):
    """Declare an ordered handler that refuses "bad"; return the payloads of its calls."""
    seen = []

    @declare("kit.step", "kit_step", ordered=True)
    def kit_step(event):
        seen.append(event.payload)
        if event.payload == "bad":
            raise Refused

    return seen


def test_an_ordering_key_runs_in_the_order_of_publication(steps):
    publish("kit.step", 1, key="a", delay=timedelta(hours=1))
    publish("kit.step", 2, key="a")
    publish("kit.step", 3, key="b")
    deliver()
    assert steps == [3]
    deliver(ahead=timedelta(hours=1))
    assert steps == [3, 1, 2]


def test_a_failed_delivery_blocks_its_ordering_key(steps):
    for payload, key in (("bad", "a"), ("waits", "a"), ("goes", "b")):
        publish("kit.step", payload, key=key)
    delivered = deliver(raise_errors=False)
    assert steps == ["bad", "goes"]
    Delivery.objects.failed().discard("not needed")
    assert (delivered.failed, deliver().succeeded) == (1, 1)
    assert steps[2:] == ["waits"]


def test_an_expired_delivery_is_discarded():
    publish("test.recorded", expires=timedelta(hours=1))
    delivered = deliver(ahead=timedelta(hours=2))
    assert (delivered.discarded, delivered.succeeded) == (2, 0)
    assert handled_by("record") == []
    assert "expired" in Delivery.objects.first().error


def test_a_paused_handler_does_not_run():
    event = publish("test.recorded")
    PausedHandler.objects.pause("record")
    deliver()
    assert states_of(event) == {"record": "pending", "record_all": "succeeded"}


@in_both_kinds_of_tests
def test_a_transactional_handler_is_confirmed_once(kind, declare):
    @declare("kit.asked", "kit_asked", transactional=True)
    def kit_asked(event):
        Effect.objects.create(handler="kit_asked")
        if event.payload == "bad":
            raise Refused

    good, bad = publish("kit.asked"), publish("kit.asked", "bad")
    delivered = deliver(raise_errors=False)
    assert (delivered.succeeded, delivered.failed) == (1, 1)
    assert (states_of(good), states_of(bad)) == ({"kit_asked": "succeeded"}, {"kit_asked": "failed"})
    assert Effect.objects.filter(handler="kit_asked").count() == 1


# ---------------------------------------------------------------- batches


@pytest.fixture
def batches(declare):
    """Declare a batched handler that refuses "bad"; return the lists of payloads of its calls."""
    seen = []

    @declare("kit.click", "kit_click", batch_size=3, batch_wait=timedelta(minutes=1))
    def kit_click(events):
        seen.append([event.payload for event in events])
        if "bad" in seen[-1]:
            raise Refused

    return seen


def test_a_batch_runs_when_it_is_full(batches):
    for n in range(4):
        publish("kit.click", n)
    assert deliver().succeeded == 3
    assert batches == [[0, 1, 2]]


def test_a_batch_runs_after_its_wait(batches):
    publish("kit.click", 1)
    assert deliver().succeeded == 0
    assert deliver(ahead=timedelta(minutes=1)).succeeded == 1
    assert batches == [[1]]


def test_the_events_of_a_batch_that_fails_twice_run_one_by_one(batches):
    for payload in ("good", "bad", "other"):
        publish("kit.click", payload)
    delivered = deliver(raise_errors=False)
    assert (delivered.succeeded, delivered.failed) == (2, 1)
    assert batches == [["good", "bad", "other"]] * 2 + [["good"], ["bad"], ["other"]]


# ---------------------------------------------------------------- injected failures


def test_an_injected_failure_replaces_the_call_of_the_handler():
    publish("test.recorded")
    with fail_handler("record") as injected, pytest.raises(InjectedFailure, match="failure 1 of 'record'"):
        deliver()
    assert injected.count == 1
    assert handled_by("record") == []


def test_a_handler_that_fails_twice_succeeds_in_the_third_run():
    event = publish("test.recorded")
    with fail_handler(record, times=2):
        delivered = deliver(retries=2)
    assert (delivered.retried, delivered.succeeded) == (2, 2)
    assert set(states_of(event).values()) == {"succeeded"}


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ConnectionError])
def test_the_injected_error_can_be_given(error):
    publish("test.recorded")
    with fail_handler("record", error=error), pytest.raises(ConnectionError):
        deliver()


def test_no_failure_is_injected_after_the_block():
    with fail_handler("record", times=5):
        pass
    publish("test.recorded")
    assert deliver().succeeded == 2


def test_a_handler_called_as_a_function_does_not_fail():
    event = outbox.ReceivedEvent(id=publish("nobody.listens").pk, topic="test.recorded")
    with fail_handler("record"):
        record(event)
    assert len(handled_by("record")) == 1


def test_failures_of_an_actor_can_be_injected():
    with transaction.atomic():
        resize.send(7, width=20)
    with fail_handler(resize):
        assert deliver(retries=1).succeeded == 1
    assert handled_by("resize") == [{"width": 20}]


def test_fail_handler_refuses_an_unknown_handler():
    with pytest.raises(UnknownHandler, match="did you mean 'record'"), fail_handler("recrd"):
        pass


@pytest.mark.django_db(transaction=True)
def test_failures_are_injected_into_a_worker_of_this_process():
    dramatiq.get_broker().flush_all()
    event = publish("flaky.mail")
    with fail_handler("flaky", times=1) as injected:
        relay_all()
        with worker():
            assert finish_with_retries(event) == {"flaky": "succeeded"}
    assert injected.count == 1


# ---------------------------------------------------------------- unittest


class ShipmentTests(OutboxTestCaseMixin, TestCase):
    """Tests of a project that uses Django's own test classes."""

    @classmethod
    def setUpTestData(cls):
        with transaction.atomic():
            outbox.publish("shop.opened")

    def test_a_shipment_is_announced_and_handled(self):
        Shipment.objects.create(address="Hill 1")
        self.assertPublished("post_save.testapp.shipment", times=1, among=self.outbox_events)
        self.assertNotPublished("shop.opened", among=self.outbox_events)
        assert self.deliver_outbox().succeeded == 1

    def test_failures_can_be_injected(self):
        Shipment.objects.create(address="Hill 1")
        with self.fail_handler("shipment_saved"), pytest.raises(InjectedFailure):
            self.deliver_outbox()

    def test_test_methods_start_without_events(self):
        assert len(self.outbox_events) == 0


def test_the_mixin_adds_no_tests():
    assert unittest.defaultTestLoader.getTestCaseNames(OutboxTestCaseMixin) == []
