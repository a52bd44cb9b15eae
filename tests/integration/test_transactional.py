"""Transactional handlers: one commit holds the effects and the success."""

import threading

import dramatiq
import pytest
from django.db import connection, connections, transaction
from django.db.models.signals import post_save

import outbox
from outbox.confirmations import confirmations
from outbox.errors import RegistrationError
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, states_of, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect, Order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def behave():
    """Return a list of functions, which a transactional handler calls after its effect, one per run."""
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


def send_duplicate(event: Event) -> None:
    """Enqueue a second message of a delivery."""
    Delivery.objects.filter(event=event).update(state="pending")
    relay_all()


def test_success_is_committed_with_the_effect(behave):
    event = publish("money.moved")
    seen = []
    behave.append(lambda: seen.append(Delivery.objects.get(event=event).state))
    relay_all()
    with worker():
        finish(event)
    assert (effects(), states_of(event), seen) == (1, {"money": "succeeded"}, ["succeeded"])


def test_a_failed_run_leaves_no_effect_and_its_retry_leaves_one(behave):
    behave.append(fail)
    event = publish("money.moved")
    relay_all()
    with worker():
        finish_with_retries(event)
    assert (effects(), states_of(event)) == (1, {"money": "succeeded"})


def test_a_duplicate_has_no_effect(behave):
    event = publish("money.moved")
    relay_all()
    send_duplicate(event)
    with worker():
        finish(event)
        wait_until(
            lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="both messages to be done"
        )
    assert effects() == 1


@pytest.mark.postgres
def test_a_duplicate_is_skipped_while_the_first_message_runs(behave):
    started, end = threading.Event(), threading.Event()

    def wait():
        started.set()
        assert end.wait(20)

    behave.append(wait)
    event = publish("money.moved")
    relay_all()
    (message,) = list(dramatiq.get_broker().queues[QUEUE].queue)
    with worker():
        assert started.wait(20)
        dramatiq.get_broker().queues[QUEUE].put(message)
        # The duplicate is done while the transaction of the first message is open.
        wait_until(
            lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 1,
            what="the duplicate to be skipped",
        )
        assert states_of(event) == {"money": "dispatched"}
        end.set()
        finish(event)
    assert effects() == 1


@pytest.mark.postgres
def test_a_handler_waits_for_the_commit_of_the_dispatch(behave):
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
        wait_until(_a_session_waits_for_a_lock, what="the handler to wait for the row")
        assert effects() == 0
        commit.set()
        finish(event)
    relay.join()
    assert effects() == 1


def _a_session_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return cursor.fetchone()[0] > 0


def test_a_redelivered_message_of_a_settled_delivery_does_not_run():
    ran = []

    @outbox.handler("again.*", queue_name=QUEUE, name="again")
    def again(event):
        ran.append(event.id)

    try:
        event = publish("again.x")
        Delivery.objects.filter(event=event).update(redeliveries=1)
        relay_all()
        Delivery.objects.filter(event=event).update(state="succeeded")
        with worker():
            wait_until(
                lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0,
                what="the duplicate to be done",
            )
    finally:
        registry.remove("again")
    assert ran == []


def test_an_async_transactional_handler_is_refused():
    with pytest.raises(RegistrationError, match="make it a def"):

        @outbox.handler("money.*", transactional=True, name="async_money")
        async def async_money(event): ...


@pytest.fixture
def sends_with_one_deleted_row():
    """Return the events of two sends, the second of a deleted row; the received keys; the row's key."""
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


def test_a_send_without_its_instance_is_discarded_in_the_commit_of_its_batch(
    sends_with_one_deleted_row, monkeypatch
):
    (first, second), received, kept = sends_with_one_deleted_row
    relay_all()
    # The same happens when the worker is killed directly after its commit.
    monkeypatch.setattr(confirmations, "add", lambda *outcomes: None)
    with worker():
        wait_until(lambda: states_of(first) == {"orders": "succeeded"}, what="the batch to be committed")
    assert received == [kept]
    lost = second.deliveries.get()
    assert (lost.state, lost.confirm_by) == ("discarded", None)
    assert lost.finished_at is not None
    assert "no longer exists" in lost.error
