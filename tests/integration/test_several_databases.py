"""Two databases of one project: each has its own events, relay and confirmations."""

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
from outbox.models import Delivery, Event, HandlerStats, ProcessHeartbeat
from outbox.publishing.notify import Notifier
from outbox.signals.background import BACKGROUND_HANDLER
from relay.maintenance import Maintenance
from relay.process import run_relays
from tests.conftest import database_url
from tests.support.data_flow import clear_broker, flush, worker
from tests.support.processes import wait_until
from tests.support.receivers import background, ordinary
from tests.testapp.models import Effect, Shipment
from tests.testapp.signals import order_paid
from tests.testapp.tasks import resize

BOTH = ("default", "second")

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=BOTH), pytest.mark.slow]


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
    return set(Delivery.objects.using(using).values_list("state", flat=True))


def work() -> None:
    """Run a worker until every delivery of both databases is finished."""
    with worker():
        wait_until(
            lambda: not any({"pending", "dispatched"} & states(using) for using in BOTH),
            what="all deliveries to finish",
        )
    flush()


# ---------------------------------------------------------------- publishing


def test_an_event_is_stored_in_the_database_of_its_transaction():
    event = publish("second")
    assert Event.objects.using("second").get().pk == event.pk
    assert Delivery.objects.using("second").count() == 2
    assert (Event.objects.count(), Delivery.objects.count()) == (0, 0)


def test_a_transaction_of_another_database_does_not_count():
    with transaction.atomic(), pytest.raises(NotInTransaction, match="on database 'second'"):
        outbox.publish("test.recorded", using="second")


def test_a_rollback_in_one_database_keeps_the_event_of_the_other():
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
    monkeypatch.setattr(Notifier, "notify", lambda _self, using, **_: woken.append(using))
    with transaction.atomic(using="second"):
        with transaction.atomic():
            for using in (*BOTH, *BOTH):
                outbox.publish("test.recorded", using=using)
        assert woken == ["default"]
    assert woken == ["default", "second"]


# ---------------------------------------------------------------- signals and actors


def test_a_model_and_its_event_are_stored_in_one_database():
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
    with ordinary(order_paid) as calls:
        with transaction.atomic(using="second"):
            send_background(order_paid, order_id=7, using="second")
        run_relays(["second"], drain=True)
        work()
    assert Delivery.objects.using("second").get(handler=BACKGROUND_HANDLER).state == "succeeded"
    assert [one["order_id"] for one in calls] == [7]


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
    sign_off = Maintenance.sign_off

    def count_and_sign_off(self):
        beats.add((self._database, ProcessHeartbeat.objects.using(self._database).count()))
        sign_off(self)

    monkeypatch.setattr(Maintenance, "sign_off", count_and_sign_off)
    for using in BOTH:
        publish(using)
    run_relays(BOTH, drain=True)
    assert [states(using) for using in BOTH] == [{"dispatched"}, {"dispatched"}]
    assert beats == {("default", 1), ("second", 1)}


def test_confirmations_are_written_to_the_database_of_their_delivery():
    for using in BOTH:
        publish(using)
    # This delivery of the second database is not sent: no confirmation of the first database may change it.
    with transaction.atomic(using="second"):
        late = outbox.publish("test.recorded", using="second", delay=timedelta(hours=1))
    Delivery.objects.using("second").filter(event_id=late.pk).update(state="dispatched")
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
    with worker():
        wait_until(
            lambda: run_relays(["second"], drain=True) or states("second") == {"failed"},
            what="the delivery to fail",
        )
    delivery = Delivery.objects.using("second").get()
    assert "Refused: cannot handle" in delivery.error


def test_a_relay_of_one_database_dispatches_nothing_of_the_other():
    for using in BOTH:
        publish(using)
    call_command("run_relay", "--drain", "--database", "second")
    assert [states(using) for using in BOTH] == [{"pending"}, {"dispatched"}]


def test_a_relay_without_the_database_option_serves_all_databases_of_the_settings():
    for using in BOTH:
        publish(using)
    call_command("run_relay", "--drain")
    assert [states(using) for using in BOTH] == [{"dispatched"}, {"dispatched"}]


def test_a_relay_in_a_separate_process_serves_the_second_database(process_env):
    for using in BOTH:
        publish(using)
    env = process_env | {
        "OUTBOX_TEST_SECOND_URL": database_url("second"),
        "OUTBOX_TEST_OPTIONS": json.dumps({"DATABASES": BOTH}),
    }
    command = [sys.executable, "-m", "tests.manage", "run_relay", "--drain", "--database", "second"]
    run(command, env=env, check=True, timeout=60)
    assert [states(using) for using in BOTH] == [{"pending"}, {"dispatched"}]


def test_a_background_receiver_gets_events_of_both_databases():
    with background(order_paid, name="of_both") as calls:
        for using in BOTH:
            with transaction.atomic(using=using):
                order_paid.send(sender=None, order_id=1, using=using)
        run_relays(BOTH, drain=True)
        work()
    assert sorted(one["using"] for one in calls) == ["default", "second"]
