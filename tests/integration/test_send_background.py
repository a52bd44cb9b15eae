"""send_background(): a worker sends the signal to its ordinary receivers."""

from contextlib import ExitStack

import pytest
from django.db import transaction
from django.db.models.signals import post_delete
from django.dispatch import Signal

import outbox
from outbox import OutboxSignal, send_background
from outbox.errors import NotInTransaction, UnserializableArgument
from outbox.models import Event
from outbox.registry import registry
from outbox.signals import BACKGROUND_HANDLER
from tests.helpers import finish, flush, relay_all, worker
from tests.listening import background, clear_broker, ordinary
from tests.testapp.models import Order
from tests.testapp.signals import order_status_changed

pytestmark = pytest.mark.django_db(transaction=True)

stocked = Signal()
restocked = OutboxSignal("shop.restocked")


@pytest.fixture(autouse=True)
def clean_broker(monkeypatch):
    clear_broker()
    # One failure is the last one, so that no test waits for the retries.
    monkeypatch.setitem(registry.get(BACKGROUND_HANDLER).actor.options, "max_retries", 0)
    yield
    flush()
    clear_broker()


def sent(signal, sender=None, **arguments) -> Event:
    with transaction.atomic():
        return send_background(signal, sender, **arguments)


def deliver(event: Event) -> dict[str, str]:
    relay_all()
    with worker():
        return finish(event)


def failing(message: str):
    def fail(**arguments):
        raise ValueError(message)

    return fail


# ---------------------------------------------------------------- the job


def test_ordinary_receivers_run_in_a_worker_and_not_here():
    with ordinary(stocked) as heard:
        event = sent(stocked, Order, count=3)
        assert heard == []
        assert deliver(event) == {BACKGROUND_HANDLER: "succeeded"}
    assert heard == [{"signal": stocked, "sender": Order, "count": 3}]


def test_instances_come_back_fetched():
    order = Order.objects.create()
    with ordinary(stocked) as heard:
        deliver(sent(stocked, Order, instance=order))
    assert heard[0]["instance"] == order


def test_a_rolled_back_send_reaches_nobody():
    with ordinary(stocked) as heard, pytest.raises(ZeroDivisionError), transaction.atomic():
        send_background(stocked)
        raise ZeroDivisionError
    assert not Event.objects.exists()
    assert heard == []


def test_a_send_outside_a_transaction_is_refused():
    with pytest.raises(NotInTransaction):
        send_background(stocked)


def test_a_deletion_carries_the_instance_as_it_was():
    order = Order(pk=7, note="gone")
    with ordinary(post_delete, Order) as heard:
        assert deliver(sent(post_delete, Order, instance=order)) == {BACKGROUND_HANDLER: "succeeded"}
    assert heard[0]["instance"].note == "gone"


def test_a_send_whose_instance_is_gone_is_discarded():
    order = Order.objects.create()
    event = sent(stocked, Order, instance=order)
    order.delete()
    assert deliver(event) == {BACKGROUND_HANDLER: "discarded"}


def test_async_receivers_run_too():
    heard = []

    async def listen(sender, **arguments):
        heard.append(arguments["count"])

    stocked.connect(listen)
    try:
        assert deliver(sent(stocked, count=3)) == {BACKGROUND_HANDLER: "succeeded"}
    finally:
        stocked.disconnect(listen)
    assert heard == [3]


# ---------------------------------------------------------------- failures


def test_every_receiver_runs_and_every_failure_is_on_the_delivery():
    with ExitStack() as stack:
        stack.enter_context(ordinary(stocked, answer=failing("no paper")))
        stack.enter_context(ordinary(stocked, answer=failing("no ink")))
        heard = stack.enter_context(ordinary(stocked))
        event = sent(stocked)
        assert deliver(event) == {BACKGROUND_HANDLER: "failed"}
    error = event.deliveries.get().error
    assert "2 of 3 receivers failed" in error
    assert "ValueError: no paper" in error
    assert "ValueError: no ink" in error
    assert "in fail" in error  # the traceback
    assert "Raised by the receiver tests.listening.ordinary.<locals>.listen" in error
    assert len(heard) == 1


def test_a_retry_calls_all_receivers_again(monkeypatch):
    options = registry.get(BACKGROUND_HANDLER).actor.options
    monkeypatch.setitem(options, "max_retries", 3)
    monkeypatch.setitem(options, "min_backoff", 5)
    monkeypatch.setitem(options, "max_backoff", 10)
    tries = []

    def fail_once(**arguments):
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")

    with ordinary(stocked) as heard, ordinary(stocked, answer=fail_once):
        assert deliver(sent(stocked)) == {BACKGROUND_HANDLER: "succeeded"}
    assert (len(tries), len(heard)) == (2, 2)


# ---------------------------------------------------------------- background receivers


@pytest.mark.parametrize("signal", [stocked, restocked])
def test_background_receivers_share_the_event_and_hear_it_once(signal):
    with background(signal) as heard_there, ordinary(signal) as heard:
        event = sent(signal, Order, count=3)
        assert deliver(event) == {"listening": "succeeded", BACKGROUND_HANDLER: "succeeded"}
    assert Event.objects.count() == 1
    assert (len(heard_there), len(heard)) == (1, 1)


def test_a_recorded_signal_is_recorded_under_its_topic():
    event = sent(restocked, Order, count=3)
    assert event.topic == "shop.restocked"
    assert [send.arguments["count"] for send in restocked.recent()] == [3]


def test_what_a_receiver_sends_in_turn_is_published_as_ever():
    def pass_on(count, **arguments):
        if count:
            with transaction.atomic():
                restocked.send(Order, count=count - 1)

    with ordinary(restocked, answer=pass_on), background(restocked):
        deliver(sent(restocked, Order, count=2))
    counts = [send.arguments["count"] for send in restocked.recent()]
    assert counts == [0, 1, 2]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("signal", [Signal(), OutboxSignal("shop.local")])
def test_a_signal_that_no_module_holds_is_refused_with_the_remedy(signal):
    with transaction.atomic(), pytest.raises(UnserializableArgument, match="top of a module"):
        send_background(signal)


def test_a_signal_that_has_vanished_since_fails_the_delivery():
    event = sent(stocked)
    Event.objects.filter(pk=event.pk).update(payload={**event.payload, "signal": "tests.nowhere.stocked"})
    assert deliver(event) == {BACKGROUND_HANDLER: "failed"}
    assert "'tests.nowhere.stocked' is not a signal here" in event.deliveries.get().error


def test_the_handler_is_known_to_every_process():
    assert outbox.handlers.call_ordinary_receivers.actor_name == BACKGROUND_HANDLER
    assert order_status_changed.topic == "shop.order_status_changed"
