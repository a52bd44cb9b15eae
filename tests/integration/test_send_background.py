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
from outbox.signals.background import BACKGROUND_HANDLER
from tests.support.data_flow import clear_broker, finish, finish_with_retries, flush, relay_all, worker
from tests.support.receivers import background, ordinary
from tests.testapp.models import Order
from tests.testapp.signals import order_status_changed

pytestmark = pytest.mark.django_db(transaction=True)

stocked = Signal()
restocked = OutboxSignal("shop.restocked")


@pytest.fixture(autouse=True)
def clean_broker(monkeypatch):
    clear_broker()
    # The first failure is final, so that no test waits for retries.
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


# ---------------------------------------------------------------- receivers in the worker


def test_ordinary_receivers_run_in_a_worker_and_not_in_the_sender():
    with ordinary(stocked) as received:
        event = sent(stocked, Order, count=3)
        assert received == []
        assert deliver(event) == {BACKGROUND_HANDLER: "succeeded"}
    assert received == [{"signal": stocked, "sender": Order, "count": 3}]


def test_a_worker_fetches_instances():
    order = Order.objects.create()
    with ordinary(stocked) as received:
        deliver(sent(stocked, Order, instance=order))
    assert received[0]["instance"] == order


def test_a_rolled_back_send_reaches_no_receiver():
    with ordinary(stocked) as received, pytest.raises(ZeroDivisionError), transaction.atomic():
        send_background(stocked)
        raise ZeroDivisionError
    assert not Event.objects.exists()
    assert received == []


def test_a_send_outside_a_transaction_is_refused():
    with pytest.raises(NotInTransaction):
        send_background(stocked)


def test_a_deletion_has_the_field_values_of_the_instance():
    order = Order(pk=7, note="gone")
    with ordinary(post_delete, Order) as received:
        assert deliver(sent(post_delete, Order, instance=order)) == {BACKGROUND_HANDLER: "succeeded"}
    assert received[0]["instance"].note == "gone"


def test_a_send_with_a_deleted_instance_is_discarded():
    order = Order.objects.create()
    event = sent(stocked, Order, instance=order)
    order.delete()
    assert deliver(event) == {BACKGROUND_HANDLER: "discarded"}


def test_async_receivers_run():
    received = []

    async def listen(sender, **arguments):
        received.append(arguments["count"])

    stocked.connect(listen)
    try:
        assert deliver(sent(stocked, count=3)) == {BACKGROUND_HANDLER: "succeeded"}
    finally:
        stocked.disconnect(listen)
    assert received == [3]


# ---------------------------------------------------------------- failures


def test_every_receiver_runs_and_the_delivery_has_every_error():
    with ExitStack() as stack:
        stack.enter_context(ordinary(stocked, answer=failing("no paper")))
        stack.enter_context(ordinary(stocked, answer=failing("no ink")))
        received = stack.enter_context(ordinary(stocked))
        event = sent(stocked)
        assert deliver(event) == {BACKGROUND_HANDLER: "failed"}
    error = event.deliveries.get().error
    assert "2 of 3 receivers failed" in error
    assert "ValueError: no paper" in error
    assert "ValueError: no ink" in error
    assert "in fail" in error  # the traceback
    assert "Raised by the receiver tests.support.receivers.ordinary.<locals>.receive" in error
    assert len(received) == 1


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

    with ordinary(stocked) as received, ordinary(stocked, answer=fail_once):
        event = sent(stocked)
        with worker():
            assert finish_with_retries(event) == {BACKGROUND_HANDLER: "succeeded"}
    assert (len(tries), len(received)) == (2, 2)


# ---------------------------------------------------------------- background receivers


@pytest.mark.parametrize("signal", [stocked, restocked])
def test_background_receivers_share_the_event_and_get_it_once(signal):
    with background(signal) as background_sends, ordinary(signal) as received:
        event = sent(signal, Order, count=3)
        assert deliver(event) == {"listening": "succeeded", BACKGROUND_HANDLER: "succeeded"}
    assert Event.objects.count() == 1
    assert (len(background_sends), len(received)) == (1, 1)


def test_an_outbox_signal_is_recorded_under_its_topic():
    event = sent(restocked, Order, count=3)
    assert event.topic == "shop.restocked"
    assert [send.arguments["count"] for send in restocked.recent()] == [3]


def test_sends_of_a_receiver_are_published():
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


def test_a_signal_that_no_longer_exists_fails_the_delivery():
    event = sent(stocked)
    Event.objects.filter(pk=event.pk).update(payload={**event.payload, "signal": "tests.nowhere.stocked"})
    assert deliver(event) == {BACKGROUND_HANDLER: "failed"}
    assert "'tests.nowhere.stocked' is not a signal here" in event.deliveries.get().error


def test_the_background_handler_is_registered_in_every_process():
    assert outbox.signals.background_handler.call_ordinary_receivers.actor_name == BACKGROUND_HANDLER
    assert order_status_changed.topic == "shop.order_status_changed"
