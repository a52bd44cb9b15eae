"""Poison messages: crashes are counted, crashed deliveries run alone, and fail in the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from django.db import OperationalError, connections

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.worker.inflight_log import InflightLog, abandoned_runs
from outbox.worker.poison import Quarantine, quarantine, site_name
from tests.support.data_flow import finish, finish_with_retries, flush, publish, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean(settings: Any, tmp_path: Path) -> Iterator[None]:
    settings.OUTBOX = {"CRASH_DIR": tmp_path, "MAX_CRASHES": 2}
    dramatiq.get_broker().flush_all()
    yield
    flush()
    dramatiq.get_broker().flush_all()


@pytest.fixture
def runs() -> Iterator[list[list[Any]]]:
    """Declare a batched handler of `crash.*`, and return the payloads of each of its runs."""
    seen: list[list[Any]] = []

    @outbox.handler("crash.*", name="crashing", queue_name=QUEUE, batch_size=2, batch_wait=timedelta())
    def crashing(events: list[Any]) -> None:
        seen.append([event.payload for event in events])

    yield seen
    registry.remove("crashing")


def crash(folder: Path, *deliveries: Delivery) -> None:
    """Leave the in-flight log of a worker that was killed while it ran some deliveries."""
    inflight_log = InflightLog(folder, site_name("default"))
    with inflight_log.entry("default", [delivery.ref for delivery in deliveries]):
        inflight_log.close()


def dispatched(topic: str = "test.recorded", payload: Any = None) -> Event:
    event = publish(topic, payload)
    relay_all()
    return event


def test_a_delivery_with_max_crashes_fails_and_does_not_run(tmp_path: Path) -> None:
    event = dispatched()
    delivery = event.deliveries.get(handler="record")
    for _ in range(2):
        crash(tmp_path, delivery)
        Quarantine().scan()
    with worker():
        assert finish(event) == {"record": "failed", "record_all": "succeeded"}
        dramatiq.get_broker().join(QUEUE)
    delivery.refresh_from_db()
    assert delivery.crashes == 2
    assert delivery.error.startswith("crashed: 2 workers died while they ran it")
    assert not list(tmp_path.iterdir())


def test_a_worker_scans_for_crashes_before_it_runs_messages(tmp_path: Path, settings: Any) -> None:
    settings.OUTBOX["MAX_CRASHES"] = 1
    event = dispatched()
    crash(tmp_path, *event.deliveries.all())
    with worker():
        assert set(finish(event).values()) == {"failed"}


def test_an_operators_retry_resets_the_crashes(tmp_path: Path) -> None:
    event = dispatched("flaky.mail")
    for _ in range(2):
        crash(tmp_path, event.deliveries.get())
        Quarantine().scan()
    assert Delivery.objects.retry() == 1
    relay_all()
    with worker():
        # Both messages may fail, if they run at the same time.
        assert finish_with_retries(event) == {"flaky": "succeeded"}
    assert event.deliveries.get().crashes == 0


def test_a_crash_of_a_succeeded_delivery_is_not_counted(tmp_path: Path) -> None:
    event = dispatched()
    with worker():
        finish(event)
    crash(tmp_path, *event.deliveries.all())
    Quarantine().scan()
    assert set(event.deliveries.values_list("state", "crashes")) == {("succeeded", 0)}


def test_the_events_of_a_crashed_batch_run_one_by_one(tmp_path: Path, runs: list[list[Any]]) -> None:
    events = [publish("crash.it", n) for n in range(2)]
    relay_all()
    crash(tmp_path, *Delivery.objects.all())
    with worker():
        wait_until(lambda: Delivery.objects.pending().count() == 2, what="the batch to return to pending")
        assert not runs
        relay_all()
        for event in events:
            wait_until(lambda event=event: relay_all() or "succeeded" in finish(event).values())  # type: ignore[misc]
    assert sorted(runs) == [[0], [1]]


def test_quarantined_deliveries_run_one_at_a_time(tmp_path: Path) -> None:
    started, end = threading.Event(), threading.Event()
    ran: list[Any] = []

    @outbox.handler("slow.*", name="slow", queue_name=QUEUE)
    def slow(event: Any) -> None:
        ran.append(event.payload)
        started.set()
        assert end.wait(20)

    try:
        events = [publish("slow.one", n) for n in range(2)]
        relay_all()
        crash(tmp_path, *Delivery.objects.all())
        with worker():
            assert started.wait(20)
            waiting = wait_until(
                lambda: Delivery.objects.pending().first(), what="the other delivery to return to pending"
            )
            assert waiting.error == "waits until no other quarantined delivery runs"
            assert waiting.attempts == 0
            assert len(ran) == 1
            end.set()
            Delivery.objects.pending().update(available_at=waiting.dispatched_at)
            relay_all()
            for event in events:
                assert finish(event) == {"slow": "succeeded"}
        assert sorted(ran) == [0, 1]
    finally:
        end.set()
        registry.remove("slow")


def test_quick_quarantined_deliveries_do_not_return_to_pending(tmp_path: Path) -> None:
    ran: list[Any] = []
    running = threading.Semaphore()

    @outbox.handler("quick.*", name="quick", queue_name=QUEUE)
    def quick(event: Any) -> None:
        assert running.acquire(blocking=False)
        ran.append(event.payload)
        running.release()

    try:
        events = [publish("quick.one", n) for n in range(8)]
        relay_all()
        crash(tmp_path, *Delivery.objects.all())
        with worker():
            for event in events:
                assert finish(event) == {"quick": "succeeded"}
        assert sorted(ran) == list(range(8))
        assert set(Delivery.objects.values_list("attempts", "error")) == {(1, "")}
    finally:
        registry.remove("quick")


@pytest.mark.postgres
def test_a_crash_is_counted_when_no_duplicate_locks_the_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = dispatched("flaky.mail").deliveries.get()
    crash(tmp_path, delivery)
    other = connections["default"].copy()
    with closing(other), other.cursor() as cursor:
        other.set_autocommit(False)
        cursor.execute("SELECT FROM outbox_delivery WHERE id = %s FOR UPDATE", [delivery.pk])
        with pytest.raises(OperationalError):
            Delivery.objects.crash([delivery.ref], max_crashes=2)
        Quarantine().scan()
        other.rollback()
    assert "could not count crashes yet" in caplog.text
    assert not Delivery.objects.crashed().exists()
    Quarantine().scan()
    assert Delivery.objects.crashed().get() == delivery


def test_a_worker_records_its_runs_and_deletes_its_log_at_the_end(tmp_path: Path) -> None:
    recorded: list[Any] = []

    @outbox.handler("recorded.*", name="recorded", queue_name=QUEUE)
    def read_the_log(event: Any) -> None:
        recorded.extend(quarantine.inflight_logs["default"].read())
        assert list(abandoned_runs(tmp_path, site_name("default"))) == []

    try:
        event = dispatched("recorded.it")
        with worker():
            assert finish(event) == {"recorded": "succeeded"}
    finally:
        registry.remove("recorded")
    assert recorded == [("default", [event.deliveries.get().ref])]
    assert not list(tmp_path.iterdir())


def test_without_max_crashes_there_is_no_in_flight_log(tmp_path: Path, settings: Any) -> None:
    settings.OUTBOX |= {"MAX_CRASHES": 0}
    disabled = Quarantine()
    disabled.start()
    assert not list(tmp_path.iterdir())
    disabled.stop()


def test_a_worker_runs_messages_without_a_writable_crash_dir(
    tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    settings.OUTBOX["CRASH_DIR"] = tmp_path / "file"
    event = dispatched()
    with worker():
        assert set(finish(event).values()) == {"succeeded"}
    assert "the in-flight log could not be created" in caplog.text
