"""Transactional handlers: effects and success are one commit."""

import threading

import dramatiq
import pytest
from django.db import connection, connections, transaction
from django.db.models.signals import post_save

import outbox
from outbox.collectors import unsubscribe
from outbox.confirmations import confirmations
from outbox.errors import RegistrationError
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.helpers import finish, flush, publish, relay_all, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect, Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def behave():
    """Return a list of functions that the transactional handler of the test calls after its effect."""
    actions = []

    @outbox.handler(
        "money.*", transactional=True, queue_name=QUEUE, name="money", min_backoff=5, max_backoff=5
    )
    def money(event):
        Effect.objects.create(handler="money", event_id=event.id)
        if actions:
            actions.pop(0)()

    dramatiq.get_broker().flush_all()
    yield actions
    registry.remove("money")
    flush()
    dramatiq.get_broker().flush_all()


def fail():
    raise ValueError("after the effect")


def effects() -> int:
    return Effect.objects.filter(handler="money").count()


def send_a_copy(event: Event) -> None:
    """Put another copy of a delivery's message on the queue, as a broker or relay that lost track would."""
    Delivery.objects.filter(event=event).update(status="pending")
    relay_all()


def test_success_is_committed_with_the_effect(behave):
    event = publish("money.moved")
    seen = []
    behave.append(lambda: seen.append(Delivery.objects.get(event=event).status))
    relay_all()
    with worker():
        finish(event)
    assert (effects(), statuses(event), seen) == (1, {"money": "succeeded"}, ["succeeded"])


def test_a_failed_run_leaves_no_effect_and_its_retry_leaves_one(behave):
    behave.append(fail)
    event = publish("money.moved")
    relay_all()
    with worker():
        finish(event)
    assert (effects(), statuses(event)) == (1, {"money": "succeeded"})


def test_a_second_copy_has_no_effect(behave):
    event = publish("money.moved")
    relay_all()
    send_a_copy(event)
    with worker():
        finish(event)
        wait_until(lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="both copies")
    assert effects() == 1


@pytest.mark.postgres
def test_a_copy_that_finds_another_at_work_leaves(behave):
    started, go_on = threading.Event(), threading.Event()

    def hold():
        started.set()
        assert go_on.wait(20)

    behave.append(hold)
    event = publish("money.moved")
    relay_all()
    (message,) = list(dramatiq.get_broker().queues[QUEUE].queue)
    with worker():
        assert started.wait(20)
        dramatiq.get_broker().queues[QUEUE].put(message)
        # The copy is done while the first one still holds its transaction open.
        wait_until(
            lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 1, what="the copy to leave"
        )
        assert statuses(event) == {"money": "dispatched"}
        go_on.set()
        finish(event)
    assert effects() == 1


@pytest.mark.postgres
def test_a_handler_waits_for_the_relay_that_is_about_to_commit(behave):
    event = publish("money.moved")
    relay_all()
    locked, commit = threading.Event(), threading.Event()

    def lock_like_a_relay():
        with transaction.atomic():
            Delivery.objects.filter(event=event).select_for_update().get()
            locked.set()
            assert commit.wait(20)
        connections.close_all()

    relay = threading.Thread(target=lock_like_a_relay)
    relay.start()
    assert locked.wait(20)
    with worker():
        wait_until(_somebody_waits_for_a_lock, what="the handler to wait for the row")
        assert effects() == 0
        commit.set()
        finish(event)
    relay.join()
    assert effects() == 1


def _somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return cursor.fetchone()[0] > 0


def test_a_redelivered_copy_of_a_settled_delivery_is_dropped_unrun():
    ran = []

    @outbox.handler("again.*", queue_name=QUEUE, name="again")
    def again(event):
        ran.append(event.id)

    try:
        event = publish("again.x")
        Delivery.objects.filter(event=event).update(redeliveries=1)
        relay_all()
        Delivery.objects.filter(event=event).update(status="succeeded")
        with worker():
            wait_until(lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="the copy")
    finally:
        registry.remove("again")
    assert ran == []


def test_an_async_transactional_handler_is_refused():
    with pytest.raises(RegistrationError, match="make it a def"):

        @outbox.handler("money.*", transactional=True, name="async_money")
        async def async_money(event): ...


@pytest.fixture
def two_sends_of_which_one_is_gone():
    """Return the events of two sends, the second of a row that is gone, and what is received."""
    received = []

    @outbox.receiver(
        post_save, sender=Order, transactional=True, batch_size=2, queue_name=QUEUE, name="orders"
    )
    def orders(sends):
        received.extend(send["instance"].pk for send in sends)

    with transaction.atomic():
        kept, gone = Order.objects.create(), Order.objects.create()
    gone.delete()
    dramatiq.get_broker().flush_all()
    yield list(Event.objects.order_by("pk")), received, kept.pk
    registry.remove("orders")
    unsubscribe("orders")
    dramatiq.get_broker().flush_all()


def test_a_send_without_its_instance_ends_with_the_batch_though_its_report_is_lost(
    two_sends_of_which_one_is_gone, monkeypatch
):
    (first, second), received, kept = two_sends_of_which_one_is_gone
    relay_all()
    # As if the worker were killed right after its commit.
    monkeypatch.setattr(confirmations, "add", lambda *outcomes: None)
    with worker():
        wait_until(lambda: statuses(first) == {"orders": "succeeded"}, what="the batch to be committed")
    assert received == [kept]
    lost = second.deliveries.get()
    assert (lost.status, lost.confirm_by) == ("discarded", None)
    assert lost.finished_at is not None
    assert "no longer exists" in lost.error


def test_a_send_without_its_instance_stays_done_where_nothing_is_confirmed(
    two_sends_of_which_one_is_gone, settings
):
    settings.OUTBOX = {"CONFIRM": False}
    (_first, second), received, kept = two_sends_of_which_one_is_gone
    relay_all()
    with worker():
        wait_until(lambda: received == [kept], what="the batch to run")
        wait_until(lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="its end")
    assert statuses(second) == {"orders": "succeeded"}
