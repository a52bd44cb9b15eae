"""Two databases served by one project: each has its own events, relay and confirmations."""

import json
import sys
from datetime import timedelta
from subprocess import run

import pytest
from django.core.management import call_command
from django.db import transaction

import outbox
from outbox import send_background
from outbox.errors import NotInTransaction, UnknownDatabase
from outbox.models import Delivery, Event, HandlerStats, RelayHeartbeat
from outbox.signals import BACKGROUND_HANDLER
from relay.housekeeping import Housekeeping
from relay.process import run_relays
from tests.conftest import database_url
from tests.helpers import flush, worker
from tests.listening import background, clear_broker, ordinary
from tests.processes import wait_until
from tests.testapp.models import Effect, Shipment
from tests.testapp.signals import order_paid
from tests.testapp.tasks import resize

BOTH = ("default", "second")

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=BOTH)]


@pytest.fixture(autouse=True)
def both_served(settings):
    settings.OUTBOX = {"DATABASES": list(BOTH)}
    clear_broker()
    yield
    flush()
    clear_broker()


def publish(using: str) -> Event:
    with transaction.atomic(using=using):
        return outbox.publish("test.recorded", using, using=using)


def states(using: str) -> set[str]:
    return set(Delivery.objects.using(using).values_list("status", flat=True))


def work() -> None:
    """Run a worker until every delivery of both databases is finished."""
    with worker():
        wait_until(
            lambda: not any({"pending", "dispatched"} & states(using) for using in BOTH),
            what="all deliveries to finish",
        )
    flush()


# ---------------------------------------------------------------- publishing


def test_an_event_lives_in_the_database_of_its_transaction():
    event = publish("second")
    assert Event.objects.using("second").get().pk == event.pk
    assert Delivery.objects.using("second").count() == 2
    assert (Event.objects.count(), Delivery.objects.count()) == (0, 0)


def test_a_transaction_of_one_database_is_none_of_the_other():
    with transaction.atomic(), pytest.raises(NotInTransaction, match="on database 'second'"):
        outbox.publish("test.recorded", using="second")


def test_a_rollback_of_one_database_leaves_the_event_of_the_other():
    with transaction.atomic():
        outbox.publish("test.recorded")
        with pytest.raises(ZeroDivisionError), transaction.atomic(using="second"):
            outbox.publish("test.recorded", using="second")
            raise ZeroDivisionError
    assert [Event.objects.using(using).count() for using in BOTH] == [1, 0]


def test_a_database_that_is_not_served_is_refused_with_the_remedy(settings):
    settings.OUTBOX = {"DATABASES": ["default"]}
    with (
        transaction.atomic(using="second"),
        pytest.raises(UnknownDatabase, match=r"'second' is not served .*; add it to OUTBOX\['DATABASES'\]"),
    ):
        outbox.publish("test.recorded", using="second")


def test_a_default_database_that_is_not_served_is_refused(settings):
    settings.OUTBOX = {"DATABASES": ["second"]}
    with transaction.atomic(), pytest.raises(UnknownDatabase, match="'default' is not served"):
        outbox.publish("test.recorded")


def test_each_alias_is_woken_once_per_transaction(monkeypatch):
    woken = []
    monkeypatch.setattr("outbox.wakeup.wake", lambda using, **_: woken.append(using))
    with transaction.atomic(using="second"):
        with transaction.atomic():
            for using in (*BOTH, *BOTH):
                outbox.publish("test.recorded", using=using)
        assert woken == ["default"]
    assert woken == ["default", "second"]


# ---------------------------------------------------------------- signals and actors


def test_a_saved_model_makes_its_event_where_it_is_saved():
    with transaction.atomic(using="second"):
        shipment = Shipment.objects.using("second").create(address="Hill 1")
    event = Event.objects.using("second").get()
    assert event.key == f"testapp.shipment:{shipment.pk}"
    assert not Event.objects.exists()


def test_a_receiver_reads_its_instance_from_the_database_of_the_send():
    with transaction.atomic(using="second"):
        Shipment.objects.using("second").create(address="Hill 2")
    run_relays(["second"], drain=True)
    work()
    (effect,) = Effect.objects.filter(handler="shipment_saved")
    assert (effect.key, effect.detail["using"]) == ("Hill 2", "second")


def test_using_names_the_database_of_a_signal_without_a_model():
    with transaction.atomic(using="second"):
        order_paid.send(sender=None, order_id=7, using="second")
    assert [Event.objects.using(using).count() for using in BOTH] == [0, 1]


def test_a_background_send_joins_the_transaction_of_its_database():
    with ordinary(order_paid) as heard:
        with transaction.atomic(using="second"):
            send_background(order_paid, order_id=7, using="second")
        run_relays(["second"], drain=True)
        work()
    assert Delivery.objects.using("second").get(handler=BACKGROUND_HANDLER).status == "succeeded"
    assert [one["order_id"] for one in heard] == [7]


def test_an_actor_joins_the_transaction_of_its_database():
    with transaction.atomic(using="second"):
        resize.send_with_options(args=(7,), using="second")
    run_relays(["second"], drain=True)
    work()
    assert Effect.objects.get().handler == "resize"
    assert states("second") == {"succeeded"}


# ---------------------------------------------------------------- relaying and confirming


def test_one_process_relays_both_databases(monkeypatch):
    beats = set()
    leave = Housekeeping.leave

    def look(self):
        beats.add((self._database, RelayHeartbeat.objects.using(self._database).count()))
        leave(self)

    monkeypatch.setattr(Housekeeping, "leave", look)
    for using in BOTH:
        publish(using)
    run_relays(BOTH, drain=True)
    assert [states(using) for using in BOTH] == [{"dispatched"}, {"dispatched"}]
    assert beats == {("default", 1), ("second", 1)}


def test_confirmations_land_in_the_database_of_their_delivery():
    for using in BOTH:
        publish(using)
    # One of the second database that is not sent: a confirmation of the first must not end it instead.
    with transaction.atomic(using="second"):
        late = outbox.publish("test.recorded", using="second", delay=timedelta(hours=1))
    Delivery.objects.using("second").filter(event_id=late.pk).update(status="dispatched")
    run_relays(BOTH, drain=True)
    with worker():
        wait_until(lambda: states("default") == {"succeeded"}, what="the first to be confirmed")
    flush()
    assert states("second") == {"succeeded", "dispatched"}
    for using in BOTH:
        stats = HandlerStats.objects.using(using).get(handler="record")
        assert (stats.dispatched, stats.succeeded) == (1, 1)


def test_a_failure_is_recorded_in_the_database_of_its_delivery():
    with transaction.atomic(using="second"):
        outbox.publish("broken.mail", using="second")
    run_relays(["second"], drain=True)
    work()
    delivery = Delivery.objects.using("second").get()
    assert delivery.status == "failed"
    assert "Refused: cannot handle" in delivery.error


def test_a_relay_of_one_database_leaves_the_other_alone():
    for using in BOTH:
        publish(using)
    call_command("run_relay", "--drain", "--database", "second")
    assert [states(using) for using in BOTH] == [{"pending"}, {"dispatched"}]


def test_a_relay_without_the_option_serves_all_that_the_settings_name():
    for using in BOTH:
        publish(using)
    call_command("run_relay", "--drain")
    assert [states(using) for using in BOTH] == [{"dispatched"}, {"dispatched"}]


def test_a_relay_in_a_process_of_its_own_serves_the_second_database(process_env):
    for using in BOTH:
        publish(using)
    env = process_env | {
        "OUTBOX_TEST_SECOND_URL": database_url("second"),
        "OUTBOX_TEST_OPTIONS": json.dumps({"DATABASES": BOTH}),
    }
    command = [sys.executable, "-m", "tests.manage", "run_relay", "--drain", "--database", "second"]
    run(command, env=env, check=True, timeout=60)
    assert [states(using) for using in BOTH] == [{"pending"}, {"dispatched"}]


def test_a_background_receiver_hears_both_databases():
    with background(order_paid, name="hears_both") as heard:
        for using in BOTH:
            with transaction.atomic(using=using):
                order_paid.send(sender=None, order_id=1, using=using)
        run_relays(BOTH, drain=True)
        work()
    assert sorted(one["using"] for one in heard) == ["default", "second"]
