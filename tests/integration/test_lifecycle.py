"""Telemetry signals, and the log that their receivers write."""

import logging

import dramatiq
import pytest
from django.db import transaction

from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, Event
from outbox.observability import telemetry
from relay.backoff import Backoff
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.maintenance import Maintenance
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import finish_with_retries, flush, publish, relay_all, worker
from tests.support.signals import sent
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


def test_a_dispatched_batch_sends_a_signal_with_its_counts():
    publish("test.recorded")
    with sent(telemetry.batch_dispatched) as seen:
        relay_all()
    (batch,) = seen
    assert batch.pop("duration_s") > 0
    assert batch == {"database": "default", "counts": {"record": 1, "record_all": 1}}


def test_a_failed_delivery_sends_a_signal_and_is_logged(caplog):
    event = publish("broken.mail")
    with sent(telemetry.delivery_failed) as seen, caplog.at_level(logging.ERROR, "outbox"), worker():
        finish_with_retries(event)
        flush()
    (failure,) = seen
    assert (failure["database"], failure["handler"]) == ("default", "broken")
    assert failure["delivery_id"] == event.deliveries.get().pk
    assert "Refused" in failure["error"]
    assert f"delivery {failure['delivery_id']} to broken has failed: " in caplog.text


def test_a_retry_sends_no_failure():
    event = publish("flaky.mail")
    with sent(telemetry.delivery_failed) as seen, worker():
        finish_with_retries(event)
        flush()
    assert seen == []


def test_a_refused_message_sends_refused_and_then_failed(settings):
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    with sent(telemetry.delivery_refused) as refused, sent(telemetry.delivery_failed) as failed:
        relay_all()
        settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
        Delivery.objects.update(available_at="2020-01-01T00:00:00Z")
        relay_all()
    assert [one["handler"] for one in refused] == ["resize"]
    assert [one["handler"] for one in failed] == ["resize"]


def test_overdue_deliveries_send_a_signal():
    publish("flaky.mail")
    relay_all()
    Delivery.objects.update(confirm_by="2020-01-01T00:00:00Z")
    with sent(telemetry.deliveries_overdue) as seen:
        Maintenance(database="default").redeliver()
    assert seen == [{"database": "default", "redelivered": 1, "failed": 0}]


def test_an_outage_and_its_end_each_send_one_signal(monkeypatch):
    publish("flaky.mail")
    problems = [BrokerUnavailable("no route")] * 3
    probe = Dispatcher.probe

    def fail_at_first(self):
        if problems:
            raise problems.pop()
        probe(self)

    monkeypatch.setattr(Dispatcher, "probe", fail_at_first)
    with (
        sent(telemetry.relay_in_trouble) as troubles,
        sent(telemetry.relay_recovered) as recoveries,
        Stop() as stop,
    ):
        options = RelayOptions(database="default", drain=True)
        Relay(options, stop=stop, outage=Backoff(cap_s=0)).run()
    assert troubles == [{"database": "default", "state": "broker away", "error": "no route"}]
    (recovery,) = recoveries
    assert (recovery["database"], recovery["state"]) == ("default", "running")
    assert recovery["duration_s"] > 0


def test_an_error_of_a_receiver_does_not_stop_the_relay(caplog):
    def raise_it(sender, **kwargs):
        raise ValueError("from a receiver")

    telemetry.batch_dispatched.connect(raise_it)
    try:
        event = publish("flaky.mail")
        relay_all()
    finally:
        telemetry.batch_dispatched.disconnect(raise_it)
    assert event.deliveries.get().state == "dispatched"
