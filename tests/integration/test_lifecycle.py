"""What happens inside is told as Django signals, and logged by a receiver of them."""

import logging
from contextlib import contextmanager

import dramatiq
import pytest
from django.db import transaction

from outbox import lifecycle
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, Event
from relay.dispatch import Dispatcher
from relay.housekeeping import Housekeeping
from tests.helpers import finish, flush, publish, relay_all, relaying, worker
from tests.testapp.tasks import resize

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean_broker():
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


@contextmanager
def told(signal):
    """Collect what is sent."""
    seen = []

    def listen(sender, **kwargs):
        seen.append({name: value for name, value in kwargs.items() if name != "signal"})

    signal.connect(listen)
    try:
        yield seen
    finally:
        signal.disconnect(listen)


def test_a_dispatched_batch_is_told_with_its_counts():
    publish("test.recorded")
    with told(lifecycle.batch_dispatched) as seen:
        relay_all()
    assert seen == [{"database": "default", "counts": {"record": 1, "record_all": 1}}]


def test_a_failed_delivery_is_told_and_logged(caplog):
    event = publish("broken.mail")
    with told(lifecycle.delivery_failed) as seen, caplog.at_level(logging.ERROR, "outbox"), worker():
        relay_all()
        finish(event)
        flush()
    (failure,) = seen
    assert (failure["database"], failure["handler"]) == ("default", "broken")
    assert failure["delivery_id"] == event.deliveries.get().pk
    assert "Refused" in failure["error"]
    assert f"delivery {failure['delivery_id']} to broken has failed: " in caplog.text


def test_a_retry_is_no_failure():
    event = publish("flaky.mail")
    with told(lifecycle.delivery_failed) as seen, worker():
        relay_all()
        finish(event)
        flush()
    assert seen == []


def test_a_refused_message_is_told_as_refused_and_then_as_failed(settings):
    with transaction.atomic():
        resize.send(1)
    Event.objects.update(payload=["not", "a", "call"])
    with told(lifecycle.delivery_refused) as refused, told(lifecycle.delivery_failed) as failed:
        relay_all()
        settings.OUTBOX = {"MAX_DISPATCH_ATTEMPTS": 2}
        Delivery.objects.update(available_at="2020-01-01T00:00:00Z")
        relay_all()
    assert [one["handler"] for one in refused] == ["resize"]
    assert [one["handler"] for one in failed] == ["resize"]


def test_overdue_deliveries_are_told():
    publish("flaky.mail")
    relay_all()
    Delivery.objects.update(confirm_by="2020-01-01T00:00:00Z")
    with told(lifecycle.deliveries_overdue) as seen:
        Housekeeping(database="default").redeliver()
    assert seen == [{"database": "default", "redelivered": 1, "failed": 0}]


def test_an_outage_is_told_once_and_its_end_too(monkeypatch):
    publish("flaky.mail")
    problems = [BrokerUnavailable("no route")] * 3
    probe = Dispatcher.probe

    def fail_at_first(self):
        if problems:
            raise problems.pop()
        probe(self)

    monkeypatch.setattr(Dispatcher, "probe", fail_at_first)
    with told(lifecycle.relay_state_changed) as seen, relaying() as relay:
        relay._trouble.next_s = lambda: 0.0
        relay.run()
    assert [(one["state"], one["detail"]) for one in seen] == [("broker away", "no route"), ("running", "")]


def test_a_receiver_that_raises_harms_nobody(caplog):
    def raise_it(sender, **kwargs):
        raise ValueError("of a user's own")

    lifecycle.batch_dispatched.connect(raise_it)
    try:
        event = publish("flaky.mail")
        relay_all()
    finally:
        lifecycle.batch_dispatched.disconnect(raise_it)
    assert event.deliveries.get().status == "dispatched"
