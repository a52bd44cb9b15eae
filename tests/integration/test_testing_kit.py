"""`outbox.testing`, as the tests of a project use it: mostly within a test's own transaction."""

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
from tests.helpers import publish, relay_all, statuses, worker
from tests.processes import wait_until
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
    """Declare handlers for the time of the test."""
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
    assert statuses(event) == {"record": "succeeded", "record_all": "succeeded"}
    delivery = event.deliveries.get(handler="record")
    assert delivery.attempts == 1
    assert delivery.finished_at >= delivery.dispatched_at


@in_both_kinds_of_tests
def test_deliver_leaves_nothing_to_do(kind):
    publish("test.recorded")
    deliver()
    assert deliver().succeeded == 0


def test_a_receiver_gets_what_a_worker_would_give_it():
    with transaction.atomic():
        Shipment.objects.create(address="Hill 1", weight="1.250")
    assert deliver().succeeded == 1
    (detail,) = handled_by("shipment_saved")
    assert (detail["weight"], detail["created"], detail["signal"]) == ("1.250", True, True)


def test_a_receiver_whose_instance_is_gone_is_discarded():
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


def test_payloads_go_through_json(declare):
    seen = []
    declare("kit.asked", "kit_asked")(lambda event: seen.append(event.payload))
    publish("kit.asked", {"lines": (1, 2), "ü": None})
    deliver()
    assert seen == [{"lines": [1, 2], "ü": None}]


def test_the_context_of_the_event_is_current_and_ends_with_the_handler(declare):
    seen = []
    declare("kit.asked", "kit_asked")(lambda event: seen.append(outbox.current_event()))
    event = publish("kit.asked")
    deliver()
    assert [current.id for current in seen] == [event.pk]
    assert outbox.current_event() is None


def test_what_a_handler_publishes_is_delivered_too(declare):
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


def test_only_the_named_handlers_run():
    event = publish("test.recorded")
    assert deliver(handlers=[record]).succeeded == 1
    assert statuses(event) == {"record": "succeeded", "record_all": "pending"}
    with pytest.raises(UnknownHandler, match="did you mean 'record_all'"):
        deliver(handlers=["record_al"])


def test_a_chain_without_end_is_stopped(declare):
    @declare("kit.loop", "kit_loop")
    def kit_loop(event):
        with transaction.atomic():
            outbox.publish("kit.loop")

    publish("kit.loop")
    with pytest.raises(TooManyDeliveries, match="next to 'kit_loop'"):
        deliver(limit=5)
    assert Delivery.objects.filter(status="succeeded").count() == 5
    assert Delivery.objects.get(status="pending").attempts == 0


def test_the_limit_may_be_just_enough():
    publish("test.recorded")
    assert deliver(limit=2).succeeded == 2


# ---------------------------------------------------------------- errors


@in_both_kinds_of_tests
def test_an_error_of_a_handler_reaches_the_test(kind):
    event = publish("broken.mail", 3)
    with pytest.raises(Refused, match="cannot handle 3"):
        deliver()
    assert statuses(event) == {"broken": "failed"}
    assert "cannot handle 3" in event.deliveries.get().error


@in_both_kinds_of_tests
def test_errors_may_be_collected_instead(kind):
    broken, recorded = publish("broken.mail"), publish("test.recorded")
    delivered = deliver(raise_errors=False)
    assert (delivered.failed, delivered.succeeded) == (1, 2)
    assert [type(error) for error in delivered.errors] == [Refused]
    assert statuses(broken) == {"broken": "failed"}
    assert set(statuses(recorded).values()) == {"succeeded"}


def test_a_handler_that_recovers_needs_a_retry():
    event = publish("flaky.mail")
    delivered = deliver(retries=1)
    assert (delivered.retried, delivered.succeeded, delivered.errors) == (1, 1, [])
    assert statuses(event) == {"flaky": "succeeded"}
    stats = HandlerStats.objects.get()
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
    assert statuses(event) == {"kit_asked": "failed"}


def test_what_a_handler_wrote_before_its_error_stays():
    publish("flaky.mail")
    deliver(raise_errors=False)
    assert len(handled_by("flaky-try")) == 1


def test_a_delivery_to_an_unknown_handler_is_an_error():
    event = publish("test.recorded")
    event.deliveries.filter(handler="record").update(handler="recrd")
    with pytest.raises(UnknownHandler, match="did you mean 'record'"):
        deliver()
    assert event.deliveries.get(handler="recrd").status == "failed"


def test_failing_the_test_from_within_a_handler_fails_the_test(declare):
    declare("kit.asked", "kit_asked")(lambda event: pytest.fail("as asked"))
    publish("kit.asked")
    with pytest.raises(pytest.fail.Exception, match="as asked"):
        deliver(raise_errors=False)
    assert outbox.current_event() is None


# ---------------------------------------------------------------- due times


def test_what_is_not_due_waits():
    event = publish("test.recorded", delay=timedelta(hours=1))
    assert deliver().succeeded == 0
    assert set(statuses(event).values()) == {"pending"}


def test_a_test_may_look_ahead():
    publish("test.recorded", delay=timedelta(hours=1))
    assert deliver(ahead=timedelta(minutes=59)).succeeded == 0
    assert deliver(ahead=timedelta(hours=1)).succeeded == 2


def test_a_test_may_name_the_moment():
    eta = datetime(2150, 1, 1, tzinfo=UTC)
    publish("test.recorded", eta=eta)
    assert deliver(now=eta - timedelta(seconds=1)).succeeded == 0
    assert deliver(now=eta).succeeded == 2


def test_a_moment_that_has_passed_holds_nothing_back():
    publish("test.recorded")
    assert deliver(now=datetime(2000, 1, 1, tzinfo=UTC)).succeeded == 2


def test_deliveries_run_in_the_order_in_which_they_are_due():
    publish("flaky.mail", "late", delay=timedelta(hours=2))
    publish("flaky.mail", "early", delay=timedelta(hours=1))
    deliver(ahead=timedelta(hours=3), retries=1)
    assert handled_by("flaky") == [{"payload": "early"}, {"payload": "late"}]


# ---------------------------------------------------------------- lanes, expiry, pauses


@pytest.fixture
def lane(declare):
    """Return the payloads that an ordered handler has seen; it refuses "bad"."""
    seen = []

    @declare("kit.step", "kit_step", ordered=True)
    def kit_step(event):
        seen.append(event.payload)
        if event.payload == "bad":
            raise Refused

    return seen


def test_a_lane_runs_in_the_order_of_publication(lane):
    publish("kit.step", 1, key="a", delay=timedelta(hours=1))
    publish("kit.step", 2, key="a")
    publish("kit.step", 3, key="b")
    deliver()
    assert lane == [3]
    deliver(ahead=timedelta(hours=1))
    assert lane == [3, 1, 2]


def test_a_failed_delivery_blocks_its_lane(lane):
    for payload, key in (("bad", "a"), ("waits", "a"), ("goes", "b")):
        publish("kit.step", payload, key=key)
    delivered = deliver(raise_errors=False)
    assert lane == ["bad", "goes"]
    Delivery.objects.failed().discard("not needed")
    assert (delivered.failed, deliver().succeeded) == (1, 1)
    assert lane[2:] == ["waits"]


def test_what_has_expired_is_discarded():
    publish("test.recorded", expires=timedelta(hours=1))
    delivered = deliver(ahead=timedelta(hours=2))
    assert (delivered.discarded, delivered.succeeded) == (2, 0)
    assert handled_by("record") == []
    assert "expired" in Delivery.objects.first().error


def test_a_paused_handler_does_not_run():
    event = publish("test.recorded")
    PausedHandler.objects.pause("record")
    deliver()
    assert statuses(event) == {"record": "pending", "record_all": "succeeded"}


@in_both_kinds_of_tests
def test_a_transactional_handler_is_settled_once(kind, declare):
    @declare("kit.asked", "kit_asked", transactional=True)
    def kit_asked(event):
        Effect.objects.create(handler="kit_asked")
        if event.payload == "bad":
            raise Refused

    good, bad = publish("kit.asked"), publish("kit.asked", "bad")
    delivered = deliver(raise_errors=False)
    assert (delivered.succeeded, delivered.failed) == (1, 1)
    assert (statuses(good), statuses(bad)) == ({"kit_asked": "succeeded"}, {"kit_asked": "failed"})
    assert Effect.objects.filter(handler="kit_asked").count() == 1


# ---------------------------------------------------------------- batches


@pytest.fixture
def batches(declare):
    """Return the payload lists that a batched handler has seen."""
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


def test_a_batch_runs_when_it_has_waited(batches):
    publish("kit.click", 1)
    assert deliver().succeeded == 0
    assert deliver(ahead=timedelta(minutes=1)).succeeded == 1
    assert batches == [[1]]


def test_a_batch_that_fails_twice_goes_one_by_one(batches):
    for payload in ("good", "bad", "other"):
        publish("kit.click", payload)
    delivered = deliver(raise_errors=False)
    assert (delivered.succeeded, delivered.failed) == (2, 1)
    assert batches == [["good", "bad", "other"]] * 2 + [["good"], ["bad"], ["other"]]


# ---------------------------------------------------------------- failures on demand


def test_an_injected_failure_stands_for_the_handler():
    publish("test.recorded")
    with fail_handler("record") as injected, pytest.raises(InjectedFailure, match="failure 1 of 'record'"):
        deliver()
    assert injected.count == 1
    assert handled_by("record") == []


def test_a_handler_that_fails_twice_succeeds_at_the_third_try():
    event = publish("test.recorded")
    with fail_handler(record, times=2):
        delivered = deliver(retries=2)
    assert (delivered.retried, delivered.succeeded) == (2, 2)
    assert set(statuses(event).values()) == {"succeeded"}


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ConnectionError])
def test_the_injected_error_may_be_chosen(error):
    publish("test.recorded")
    with fail_handler("record", error=error), pytest.raises(ConnectionError):
        deliver()


def test_after_the_block_nothing_fails():
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


def test_an_unknown_handler_cannot_fail():
    with pytest.raises(UnknownHandler, match="did you mean 'record'"), fail_handler("recrd"):
        pass


@pytest.mark.django_db(transaction=True)
def test_failures_reach_a_worker_of_this_process():
    dramatiq.get_broker().flush_all()
    event = publish("flaky.mail")
    with fail_handler("flaky", times=1) as injected:
        relay_all()
        with worker():
            wait_until(lambda: statuses(event) == {"flaky": "succeeded"}, what="the handler to recover")
    assert injected.count == 1


# ---------------------------------------------------------------- unittest


class ShipmentTests(OutboxTestCaseMixin, TestCase):
    """Tests of a project that uses Django's own test classes."""

    @classmethod
    def setUpTestData(cls):
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


def test_the_mixin_brings_no_tests_of_its_own():
    assert unittest.defaultTestLoader.getTestCaseNames(OutboxTestCaseMixin) == []
