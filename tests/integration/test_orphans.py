"""Deliveries whose process died with their messages in its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import dramatiq
import pytest
from django.db import connection, connections, transaction
from django.db.models.functions import Now

import outbox
from outbox.brokers import EmbeddedBroker
from outbox.models import Delivery, Event, ProcessHeartbeat
from outbox.process_fields import process_fields
from outbox.registry import registry
from relay import owner_lock
from relay.orphans import FREE_FOR_S, Orphans
from relay.owner_lock import OwnerLock, number_of
from relay.redelivery import Redelivery
from tests.support.data_flow import publish, relay_all
from tests.support.names import unique_name
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

OWN = 1
LIVING_HOST = "elsewhere.example"


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def orphans(clock: SimpleNamespace) -> Orphans:
    return Orphans(database="default", own=OWN, clock=lambda: clock.now)


@pytest.fixture
def delivery() -> Delivery:
    """Return a delivery that is dispatched to the memory of a process."""
    publish("filed.mail")
    relay_all()
    return Delivery.objects.get()


def own(delivery: Delivery, number: int) -> None:
    Delivery.objects.filter(pk=delivery.pk).update(owner=number)


def heartbeat(pid: int, host: str = "") -> int:
    """Write the heartbeat of a process that died; return the number of the process."""
    process_id = uuid4()
    fields = {**process_fields(), "pid": pid} | ({"host": host} if host else {})
    ProcessHeartbeat.objects.beat(process_id, state="running", kind=ProcessHeartbeat.Kind.RELAY, **fields)
    return number_of(process_id)


def ended_pid() -> int:
    """Return the id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@contextmanager
def locked(number: int) -> Iterator[None]:
    """Hold the lock of a process in another session."""
    other = connections["default"].copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [number])
        yield
        # The server would notice the end of the session a moment later.
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [number])
    finally:
        other.close()


def test_a_process_with_its_lock_keeps_its_deliveries(
    orphans: Orphans, delivery: Delivery, clock: SimpleNamespace
) -> None:
    # The host has no such process: it may be in another container of the same name.
    number = heartbeat(ended_pid())
    own(delivery, number)
    with locked(number):
        for _ in range(3):
            assert orphans.run().made_due == 0
            clock.now += FREE_FOR_S
    delivery.refresh_from_db()
    assert delivery.state == Delivery.State.DISPATCHED


def test_deliveries_of_a_process_that_this_host_no_longer_has_are_redelivered_at_once(
    orphans: Orphans, delivery: Delivery
) -> None:
    own(delivery, heartbeat(ended_pid()))
    assert orphans.run().made_due == 1
    delivery.refresh_from_db()
    assert (delivery.state, delivery.resends, delivery.redeliveries) == ("pending", 1, 0)


def test_a_predecessor_with_the_same_process_id_is_dead(orphans: Orphans, delivery: Delivery) -> None:
    own(delivery, heartbeat(os.getpid()))
    assert orphans.run().made_due == 1


@pytest.mark.parametrize("place", ["another host", "a living process here", "no heartbeat"])
def test_a_process_may_have_lost_its_session_for_a_moment(
    place: str, orphans: Orphans, delivery: Delivery, clock: SimpleNamespace
) -> None:
    numbers = {
        "another host": lambda: heartbeat(ended_pid(), LIVING_HOST),
        "a living process here": lambda: heartbeat(os.getppid()),
        "no heartbeat": lambda: 2,
    }
    number = numbers[place]()
    own(delivery, number)
    assert orphans.run().made_due == 0
    clock.now += FREE_FOR_S - 0.1
    assert orphans.run().made_due == 0
    with locked(number):
        clock.now += 0.1
        assert orphans.run().made_due == 0
    # It had its lock again, so the time begins anew.
    assert orphans.run().made_due == 0
    clock.now += FREE_FOR_S
    assert orphans.run().made_due == 1


def test_a_process_does_not_take_its_own_deliveries_or_those_in_a_broker(
    delivery: Delivery, clock: SimpleNamespace
) -> None:
    publish("filed.mail")
    relay_all()
    own(delivery, OWN)
    orphans = Orphans(database="default", own=OWN, in_memory=lambda: [delivery.pk], clock=lambda: clock.now)
    assert orphans.run().made_due == 0
    clock.now += FREE_FOR_S
    assert orphans.run().made_due == 0


def test_an_own_delivery_whose_message_never_came_is_redelivered(
    delivery: Delivery, clock: SimpleNamespace
) -> None:
    publish("filed.mail")
    relay_all()
    Delivery.objects.update(owner=OWN)
    in_memory = set(Delivery.objects.values_list("pk", flat=True))
    orphans = Orphans(database="default", own=OWN, in_memory=lambda: in_memory, clock=lambda: clock.now)
    for _ in range(2):
        assert orphans.run().made_due == 0
        clock.now += FREE_FOR_S
    in_memory.remove(delivery.pk)
    # The commit of a claim comes a moment before its messages.
    assert orphans.run().made_due == 0
    clock.now += FREE_FOR_S
    assert orphans.run().made_due == 1
    delivery.refresh_from_db()
    assert (delivery.state, delivery.resends) == ("pending", 1)


def test_a_row_that_its_dead_process_still_locks_follows_later(orphans: Orphans, delivery: Delivery) -> None:
    own(delivery, heartbeat(ended_pid()))
    other = connections["default"].copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT 1 FROM outbox_delivery FOR UPDATE")
        assert orphans.run().made_due == 0
        other.rollback()
        assert orphans.run().made_due == 1
    finally:
        other.close()


def test_an_overdue_delivery_of_another_process_is_not_taken_for_lost(delivery: Delivery) -> None:
    Delivery.objects.update(owner=2, confirm_by=Now() - timedelta(seconds=1))
    assert Redelivery(database="default", ask=None, own=OWN).run() == 0
    assert Redelivery(database="default", ask=None).run() == 0
    Delivery.objects.update(owner=OWN)
    assert Redelivery(database="default", ask=None, own=OWN).run() == 1


def test_a_delivery_that_a_broker_gets_has_no_owner(delivery: Delivery) -> None:
    Delivery.objects.update(owner=2)
    Delivery.objects.unconfirmed().redeliver_lost()
    relay_all()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.owner) == ("dispatched", None)


# ---------------------------------------------------------------- the lock


def test_the_lock_is_held_until_the_end(orphans: Orphans, delivery: Delivery, clock: SimpleNamespace) -> None:
    with OwnerLock("default") as lock:
        assert lock.wait(30)
        own(delivery, lock.number)
        assert orphans.run().made_due == 0
    assert orphans.run().made_due == 0
    clock.now += FREE_FOR_S
    assert orphans.run().made_due == 1


def test_a_lost_session_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with OwnerLock("default") as lock:
        assert lock.wait(30)
        before = _holder(lock.number)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
        wait_until(lambda: _holder(lock.number) not in (None, before), what="another session with the lock")
        assert lock.wait(30)
    assert caplog.text.count("lost the lock of this process in database 'default'") == 1
    assert caplog.text.count("has the lock of this process in database 'default' again after") == 1


def _holder(number: int) -> int | None:
    """Return the backend that holds the lock of a process."""
    high, low = number >> 32, number & 0xFFFFFFFF
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND classid::bigint = %s AND objid::bigint = %s",
            [high, low],
        )
        row = cursor.fetchone()
    return row[0] if row else None


def test_the_lock_outlives_any_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = iter([RuntimeError("not an error of the database")])
    execute = owner_lock._execute

    def fail_once(*arguments: object) -> None:
        for error in errors:
            raise error
        execute(*arguments)

    monkeypatch.setattr(owner_lock, "_execute", fail_once)
    monkeypatch.setattr(owner_lock, "KEEPALIVE_S", 0.01)
    with OwnerLock("default") as lock:
        wait_until(lambda: "again after" in caplog.text, what="the lock to be taken again")
        assert lock.wait(30)


# ---------------------------------------------------------------- the messages of other senders


@pytest.fixture
def embedded() -> Iterator[EmbeddedBroker]:
    """Return a broker in memory, with the transactional actor `bill`."""
    broker = EmbeddedBroker(middleware=[])
    name = unique_name()

    @dramatiq.actor(broker=broker, actor_class=outbox.TransactionalActor, actor_name=name)
    def bill(number: int) -> None: ...

    yield broker
    registry.remove(name)


def test_a_message_that_was_composed_without_send_is_written_to_the_outbox(embedded: EmbeddedBroker) -> None:
    (actor,) = embedded.actors.values()
    embedded.enqueue(actor.message_with_options(args=(3,), priority=1), delay=60_000)
    event = Event.objects.get()
    assert event.payload == {"args": [3], "kwargs": {}, "options": {"priority": 1}}
    assert Delivery.objects.get().available_at > event.created_at + timedelta(seconds=59)


def test_such_a_message_joins_the_current_transaction(embedded: EmbeddedBroker) -> None:
    (actor,) = embedded.actors.values()
    with transaction.atomic():
        embedded.enqueue(actor.message(3))
        transaction.set_rollback(True)
    assert not Event.objects.exists()
