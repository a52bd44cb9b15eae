"""Late messages from before a restore or a truncation, when their ids are those of new deliveries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from django.db import connection, connections, transaction

import outbox
from outbox import versions
from outbox.confirmations import confirm, confirmations
from outbox.confirmations.outcome import Outcome
from outbox.events import DeliveryRef
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.worker.inflight_log import InflightLog
from outbox.worker.poison import Quarantine, quarantine, site_name
from tests.support.data_flow import finish, flush, publish, relay_all, worker
from tests.support.factories import make_delivery
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "transactional": {"transactional": True},
    "batched": {"batch_size": 2, "batch_wait": timedelta()},
    "transactional_batch": {"transactional": True, "batch_size": 2, "batch_wait": timedelta()},
    "failing": {"max_retries": 0},
    "retried": {"max_retries": 3},
}


@pytest.fixture(autouse=True)
def empty_broker(settings: Any, tmp_path: Path) -> Iterator[None]:
    settings.OUTBOX = {"CRASH_DIR": tmp_path}
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


@pytest.fixture
def runs() -> Iterator[list[str]]:
    """Declare a handler of each kind, and of the new delivery; return the names of their runs."""
    seen: list[str] = []

    def declare(name: str, options: dict[str, Any]) -> None:
        @outbox.handler(f"reused.{name}", name=name, queue_name=QUEUE, **options)
        def run(event: Any) -> None:
            seen.append(name)
            if name in ("failing", "retried"):
                raise ValueError(name)

    for name, options in {**KINDS, "new": {}}.items():
        declare(name, options)
    yield seen
    for name in (*KINDS, "new"):
        registry.remove(name)


def restart_ids() -> None:
    """Empty the tables as a restore may do, so that ids start again."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("TRUNCATE outbox_event, outbox_delivery RESTART IDENTITY")
        else:
            cursor.execute("DELETE FROM outbox_delivery")
            cursor.execute("DELETE FROM outbox_event")
            cursor.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox_delivery'")


def late_message(name: str) -> Event:
    """Leave a message in the broker whose delivery id is that of a new delivery; return the new event."""
    restart_ids()
    old = publish(f"reused.{name}")
    relay_all()
    old_id = old.deliveries.get().pk
    restart_ids()
    new = publish("reused.new")
    assert new.deliveries.get().pk == old_id
    return new


def row(event: Event) -> dict[str, Any]:
    """Return all columns of the only delivery of an event."""
    return Delivery.objects.filter(event=event).values().get()


def run_messages() -> None:
    """Run all messages in the queue, and write their outcomes."""
    with worker():
        dramatiq.get_broker().join(QUEUE, fail_fast=False)
    flush()


def change_message(change: Any) -> None:
    """Change the only message in the queue."""
    queue = dramatiq.get_broker().queues[QUEUE]
    body = json.loads(queue.queue.pop())
    change(body)
    queue.queue.append(json.dumps(body).encode())


def other_ref(delivery: Delivery) -> DeliveryRef:
    """Return a delivery of another event that had the same id."""
    return DeliveryRef(delivery.pk, str(make_delivery().event_id))


@pytest.mark.parametrize("name", KINDS)
def test_a_late_message_does_not_change_the_delivery_that_has_its_id_now(runs: list[str], name: str) -> None:
    new = late_message(name)
    before = row(new)
    run_messages()
    assert row(new) == before
    relay_all()
    with worker():
        assert finish(new) == {"new": "succeeded"}
    assert runs[-1] == "new"


@pytest.mark.parametrize("name", ["plain", "batched"])
def test_a_late_message_of_an_unreadable_version_does_not_change_the_delivery(
    runs: list[str], name: str
) -> None:
    new = late_message(name)
    before = row(new)
    change_message(lambda body: body["options"]["outbox"].update(v=versions.NEWEST + 1))
    run_messages()
    assert row(new) == before
    assert runs == []


def test_a_late_message_of_an_unknown_handler_does_not_change_the_delivery(runs: list[str]) -> None:
    new = late_message("plain")
    before = row(new)
    change_message(lambda body: body.update(actor_name="absent"))
    run_messages()
    assert row(new) == before
    assert runs == []


def test_a_late_duplicate_does_not_read_the_state_of_the_delivery_that_has_its_id(runs: list[str]) -> None:
    new = late_message("plain")
    Delivery.objects.filter(event=new).update(state="succeeded")
    change_message(lambda body: body["options"]["outbox"].update(earlier_messages=1))
    run_messages()
    # Its delivery is gone, so nothing says that the message has run before.
    assert runs == ["plain"]


def test_a_crash_during_a_late_message_is_not_counted_for_the_delivery_that_has_its_id(
    tmp_path: Path,
) -> None:
    delivery = make_delivery(state="dispatched")
    inflight_log = InflightLog(tmp_path, site_name("default"))
    with inflight_log.entry("default", [other_ref(delivery)]):
        inflight_log.close()
    Quarantine().scan()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.crashes) == ("dispatched", 0)


def test_a_late_message_is_not_quarantined_for_the_crashes_of_the_delivery_that_has_its_id(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = late_message("batched")
    Delivery.objects.filter(event=new).update(crashes=1)
    entered: list[int] = []
    enter = quarantine.enter
    monkeypatch.setattr(quarantine, "enter", lambda: bool(entered.append(1)) or enter())
    run_messages()
    assert (runs, entered) == (["batched"], [])


def test_of_two_outcomes_with_one_id_only_that_of_the_present_event_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivery = make_delivery(state="dispatched")
    late = Outcome(other_ref(delivery), "default", "tests.mail", "failed", "failed", 0.01, "late")
    mine = Outcome(delivery.ref, "default", "tests.mail", "succeeded", "succeeded", 0.01)
    confirmations.add(mine, late)
    flush()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.error) == ("succeeded", "")
    if connection.vendor == "postgresql":  # elsewhere outcomes are written one by one, without a second look
        assert f"delivery {delivery.pk} of event {late.delivery.event_id} no longer exists" in caplog.text


@pytest.mark.parametrize("state", ["succeeded", "failed", "discarded", "pending"])
def test_an_outcome_of_another_event_changes_no_row(state: str) -> None:
    delivery = make_delivery(state="dispatched")
    before = row(delivery.event)
    late = Outcome(other_ref(delivery), "default", "tests.mail", state, "", 0.01, unstarted=True)
    assert confirm([late], "default") == ([], set())
    assert row(delivery.event) == before


@pytest.mark.postgres
def test_a_running_late_message_does_not_make_a_duplicate_of_the_delivery_that_has_its_id() -> None:
    delivery = make_delivery(state="dispatched")
    late, running = other_ref(delivery), connections["default"].copy()
    settling = connections["default"]
    try:
        connections["default"] = running
        transaction.set_autocommit(False)
        assert Delivery.objects.settle([late]) == set()
        connections["default"] = settling
        with transaction.atomic():
            assert Delivery.objects.settle([delivery.ref]) == {delivery.ref}
    finally:
        connections["default"] = settling
        running.close()
