"""Deliveries that workers died of: counted, looked up, run alone, and failed in the end."""

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
from outbox.crashes import Crashes, _site, crashes
from outbox.journal import Journal, left_behind
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.helpers import finish, flush, publish, relay_all, worker
from tests.processes import wait_until
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


def die_of(folder: Path, *deliveries: Delivery) -> None:
    """Leave what a worker leaves that is killed while it runs some deliveries."""
    journal = Journal(folder, _site())
    with journal.noting("default", [delivery.pk for delivery in deliveries]):
        journal.forget()


def dispatched(topic: str = "test.recorded", payload: Any = None) -> Event:
    event = publish(topic, payload)
    relay_all()
    return event


def test_what_a_worker_died_of_often_enough_fails_and_does_not_run(tmp_path: Path) -> None:
    event = dispatched()
    delivery = event.deliveries.get(handler="record")
    for _ in range(2):
        die_of(tmp_path, delivery)
        Crashes().look()
    with worker():
        assert finish(event) == {"record": "failed", "record_all": "succeeded"}
        dramatiq.get_broker().join(QUEUE)
    delivery.refresh_from_db()
    assert delivery.crashes == 2
    assert delivery.error.startswith("crashed: 2 workers died while they ran it")
    assert not list(tmp_path.iterdir())


def test_a_worker_looks_before_it_runs_anything(tmp_path: Path, settings: Any) -> None:
    settings.OUTBOX["MAX_CRASHES"] = 1
    event = dispatched()
    die_of(tmp_path, *event.deliveries.all())
    with worker():
        assert set(finish(event).values()) == {"failed"}


def test_an_operator_gives_it_a_fresh_start(tmp_path: Path) -> None:
    event = dispatched("flaky.mail")
    for _ in range(2):
        die_of(tmp_path, event.deliveries.get())
        Crashes().look()
    assert Delivery.objects.retry() == 1
    relay_all()
    with worker():
        assert finish(event) == {"flaky": "succeeded"}
    assert event.deliveries.get().crashes == 0


def test_a_crash_of_one_that_has_succeeded_changes_nothing(tmp_path: Path) -> None:
    event = dispatched()
    with worker():
        finish(event)
    die_of(tmp_path, *event.deliveries.all())
    Crashes().look()
    assert set(event.deliveries.values_list("status", "crashes")) == {("succeeded", 0)}


def test_a_batch_that_a_worker_died_of_goes_one_by_one(tmp_path: Path, runs: list[list[Any]]) -> None:
    events = [publish("crash.it", n) for n in range(2)]
    relay_all()
    die_of(tmp_path, *Delivery.objects.all())
    with worker():
        wait_until(lambda: Delivery.objects.pending().count() == 2, what="the batch to be given back")
        assert not runs
        relay_all()
        for event in events:
            wait_until(lambda event=event: relay_all() or "succeeded" in finish(event).values())  # type: ignore[misc]
    assert sorted(runs) == [[0], [1]]


def test_one_suspect_runs_at_a_time(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    ran: list[Any] = []

    @outbox.handler("slow.*", name="slow", queue_name=QUEUE)
    def slow(event: Any) -> None:
        ran.append(event.payload)
        started.set()
        assert go_on.wait(20)

    try:
        events = [publish("slow.one", n) for n in range(2)]
        relay_all()
        die_of(tmp_path, *Delivery.objects.all())
        with worker():
            assert started.wait(20)
            waiting = wait_until(
                lambda: Delivery.objects.pending().first(), what="the other to be given back"
            )
            assert waiting.error == "waits to run without other suspects"
            assert waiting.attempts == 0
            assert len(ran) == 1
            go_on.set()
            Delivery.objects.pending().update(available_at=waiting.dispatched_at)
            relay_all()
            for event in events:
                assert finish(event) == {"slow": "succeeded"}
        assert sorted(ran) == [0, 1]
    finally:
        go_on.set()
        registry.remove("slow")


def test_quick_suspects_run_one_after_the_other_without_going_back(tmp_path: Path) -> None:
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
        die_of(tmp_path, *Delivery.objects.all())
        with worker():
            for event in events:
                assert finish(event) == {"quick": "succeeded"}
        assert sorted(ran) == list(range(8))
        assert set(Delivery.objects.values_list("attempts", "error")) == {(1, "")}
    finally:
        registry.remove("quick")


@pytest.mark.postgres
def test_a_journal_waits_until_no_copy_has_the_row_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = dispatched("flaky.mail").deliveries.get()
    die_of(tmp_path, delivery)
    other = connections["default"].copy()
    with closing(other), other.cursor() as cursor:
        other.set_autocommit(False)
        cursor.execute("SELECT FROM outbox_delivery WHERE id = %s FOR UPDATE", [delivery.pk])
        with pytest.raises(OperationalError):
            Delivery.objects.all().crash(max_crashes=2)
        Crashes().look()
        other.rollback()
    assert "could not count crashes yet" in caplog.text
    assert not Delivery.objects.crashed().exists()
    Crashes().look()
    assert Delivery.objects.crashed().get() == delivery


def test_a_worker_notes_what_it_runs_and_leaves_nothing(tmp_path: Path) -> None:
    noted: list[Any] = []

    @outbox.handler("noted.*", name="noted", queue_name=QUEUE)
    def look_into_the_journal(event: Any) -> None:
        assert crashes._journal is not None
        noted.append(bytes(crashes._journal._memory).rstrip(b"\0") != b"")
        assert list(left_behind(tmp_path, _site())) == []

    try:
        event = dispatched("noted.it")
        with worker():
            assert finish(event) == {"noted": "succeeded"}
    finally:
        registry.remove("noted")
    assert noted == [True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("off", [{"MAX_CRASHES": 0}, {"CONFIRM": False}])
def test_without_a_limit_or_confirmations_there_is_no_journal(
    tmp_path: Path, settings: Any, off: dict[str, Any]
) -> None:
    settings.OUTBOX |= off
    own = Crashes()
    own.open()
    assert not list(tmp_path.iterdir())
    own.close()


def test_a_folder_that_cannot_be_written_to_keeps_no_worker_from_its_work(
    tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    settings.OUTBOX["CRASH_DIR"] = tmp_path / "file"
    event = dispatched()
    with worker():
        assert set(finish(event).values()) == {"succeeded"}
    assert "no journal" in caplog.text
