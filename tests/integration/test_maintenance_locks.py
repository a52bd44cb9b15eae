"""Maintenance waits for no lock: rows that another transaction has locked stay, and the others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models import Model
from django.db.models.functions import Now
from django.db.models.signals import post_delete

import outbox
from outbox.models import Delivery, Event, HandlerStats, PausedHandler, ProcessHeartbeat
from outbox.models.heartbeat import ALIVE_FOR
from outbox.operations.pruning import prune
from outbox.registry import registry
from relay.maintenance import Maintenance
from tests.support.factories import make_delivery, make_event, make_relay
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

OLD = timedelta(days=60)
HANDLER = "locked"


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    outbox.handler("locked.*", name=HANDLER, queue_name=QUEUE, ordered=True)(print)
    yield
    registry.remove(HANDLER)


@contextmanager
def locked(row: Model) -> Iterator[None]:
    """Keep a row locked, as a duplicate of a transactional handler does while it runs."""
    with transaction.atomic():
        type(row)._default_manager.select_for_update().get(pk=row.pk)
        yield


def elsewhere(do: Callable[[], Any]) -> Any:
    """Call a function on a separate connection, which fails if it waits for a row lock."""

    def with_timeout() -> Any:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '3s'")
            return do()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(with_timeout).result()


def maintenance() -> Maintenance:
    return Maintenance(database="default")


def blocked(key: str) -> Delivery:
    return make_delivery(handler=HANDLER, key=key, waits_for="key")


def stale(key: str) -> Delivery:
    return make_delivery(handler=HANDLER, waits_for="resume")


def overdue(key: str) -> Delivery:
    delivery = make_delivery(handler=HANDLER, state="dispatched")
    Delivery.objects.filter(pk=delivery.pk).update(confirm_by=Now() - timedelta(seconds=1))
    return delivery


def is_due(row: Model) -> bool:
    return Delivery.objects.due().filter(pk=row.pk).exists()


def is_gone(row: Model) -> bool:
    return not type(row)._default_manager.filter(pk=row.pk).exists()


def finished(key: str) -> Delivery:
    return make_delivery(make_event(created_at=datetime.now(UTC) - OLD), state="succeeded")


def old_event(key: str) -> Event:
    return finished(key).event


def old_minute(key: str) -> HandlerStats:
    minute: HandlerStats = HandlerStats.objects.create(handler=key, bucket=datetime.now(UTC) - OLD)
    return minute


def old_relay(key: str) -> ProcessHeartbeat:
    return make_relay(host=key, seen_at=datetime.now(UTC) - OLD)


def forget_relays() -> int:
    forgotten: int = ProcessHeartbeat.objects.forget(ALIVE_FOR)
    return forgotten


def forget_minutes() -> int:
    forgotten: int = HandlerStats.objects.forget(OLD / 2, limit=10)
    return forgotten


@pytest.mark.parametrize(
    ("make", "run", "is_done"),
    [
        pytest.param(blocked, lambda: maintenance().unblock_waiting(), is_due, id="unblock"),
        pytest.param(stale, lambda: maintenance().end_stale_waits(), is_due, id="end stale waits"),
        pytest.param(overdue, lambda: maintenance().redeliver(), is_due, id="redeliver"),
        pytest.param(finished, lambda: prune("default"), is_gone, id="prune deliveries"),
        pytest.param(old_event, lambda: prune("default"), is_gone, id="prune events"),
        pytest.param(old_minute, forget_minutes, is_gone, id="forget statistics"),
        pytest.param(old_relay, forget_relays, is_gone, id="forget relays"),
    ],
)
def test_maintenance_skips_locked_rows(
    make: Callable[[str], Model], run: Callable[[], int], is_done: Callable[[Model], bool]
) -> None:
    first, second = make("first"), make("second")
    with locked(first):
        assert elsewhere(run) == 1
    assert not is_done(first)
    assert is_done(second)
    # Nothing of the work is lost: the next run does it.
    assert elsewhere(run) == 1
    assert is_done(first)


def test_a_resumption_skips_locked_rows_and_maintenance_ends_their_wait() -> None:
    first, second = stale("first"), stale("second")
    PausedHandler.objects.pause(HANDLER)
    with locked(first):
        assert elsewhere(lambda: PausedHandler.objects.resume(HANDLER))
    assert (is_due(first), is_due(second)) == (False, True)
    maintenance().end_stale_waits()
    assert is_due(first)


def test_locked_waits_do_not_hide_the_waits_behind_them() -> None:
    first, second = stale("first"), stale("second")
    with locked(first):
        assert elsewhere(Maintenance(database="default", key_chunk=1).end_stale_waits) == 1
    assert is_due(second)


def test_every_key_is_examined_in_chunks_whatever_the_first_deliveries_are() -> None:
    for n in range(5):
        make_delivery(handler=HANDLER, key=f"busy-{n}", state="dispatched")
    make_delivery(handler=HANDLER, key="failed", state="failed")
    rows = [blocked(key) for key in ("a", "busy-3", "failed", "z", "z")]
    chunks = Maintenance(database="default", key_chunk=2)
    # Four runs examine the eight keys, and the fifth begins at the first key.
    assert sum(chunks.unblock_waiting() for _run in range(4)) == 2
    assert [is_due(row) for row in rows] == [True, False, False, True, False]
    another = blocked("aa")
    chunks.unblock_waiting()
    chunks.unblock_waiting()
    assert is_due(another)


def test_maintenance_gives_up_a_table_that_is_locked() -> None:
    """A migration locks the whole table, and no row of it can be skipped."""
    stale("first")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE outbox_delivery IN SHARE ROW EXCLUSIVE MODE")

        def give_up() -> int:
            with connection.cursor() as other:
                other.execute("RESET lock_timeout")
            return maintenance().end_stale_waits()

        with pytest.raises(OperationalError, match="lock timeout"):
            elsewhere(give_up)


def test_a_transaction_of_the_project_keeps_its_own_lock_timeout() -> None:
    stale("first")
    with transaction.atomic(), connection.cursor() as cursor:
        PausedHandler.objects.pause(HANDLER)
        PausedHandler.objects.resume(HANDLER)
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)


def test_pruning_tells_the_receivers_of_a_deletion() -> None:
    event, deleted = old_event("first"), []

    def record(instance: Model, **_more: Any) -> None:
        deleted.append(instance.pk)

    post_delete.connect(record, sender=Event)
    try:
        assert prune("default") == 1
    finally:
        post_delete.disconnect(record, sender=Event)
    assert deleted == [event.pk]
    assert not Delivery.objects.exists()
