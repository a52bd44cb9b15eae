"""A relay maintains beside dispatching: neither delays the other, and failures are reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError
from django.db.models.functions import Now

from outbox.models import Delivery, Event, ProcessHeartbeat
from outbox.own_connection import own_connection
from relay import maintenance as maintenance_module
from relay import pruning_task
from relay import redelivery as redelivery_module
from relay.loop import Relay
from relay.maintenance import BEHIND, RUNNING, Maintenance
from relay.maintenance_task import MaintenanceTask, TaskRun
from relay.maintenance_thread import MaintenanceThread
from relay.pruning_task import PRUNE_PATIENCE_S
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from relay.waker import Waker
from tests.support.data_flow import clear_broker, flush, publish, relay_all, states_of
from tests.support.factories import make_delivery, make_event
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

THREAD = "outbox-maintenance-default"


@pytest.fixture(autouse=True)
def clean_broker() -> Iterator[None]:
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the relay watch its maintenance, and write heartbeats, all the time."""
    monkeypatch.setattr(maintenance_module, "BEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(maintenance_module, "MaintenanceThread", partial(MaintenanceThread, patience_s=0.0))


@contextmanager
def running(**options: Any) -> Iterator[None]:
    """Run a relay of the default database in a thread."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with own_connection("default"):
                relay.run()
        except BaseException as error:
            errors.append(error)

    with Stop() as stop:
        relay = Relay(RelayOptions(database="default", **options), stop=stop)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.request()
            thread.join(30)
        assert not thread.is_alive()
    assert errors == []


def maintenance_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def heartbeat() -> tuple[str, str]:
    """Return the state and its reason, empty before the first heartbeat."""
    found: tuple[str, str] | None = ProcessHeartbeat.objects.values_list("state", "detail").first()
    return found or ("", "")


class Gate:
    """Keeps a task of the maintenance running until the test ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        owner = pruning_task.Pruning if task == "prune" else Maintenance
        monkeypatch.setattr(owner, task, lambda _self: self._wait())

    def _wait(self) -> int:
        self.entered.set()
        assert self.opened.wait(60)
        return 0

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_error: object) -> None:
        self.opened.set()
        for thread in maintenance_threads():
            thread.join(30)


@pytest.mark.parametrize("task", ["redeliver", "unblock_waiting", "end_stale_waits", "prune"])
def test_a_task_that_takes_long_delays_neither_the_dispatch_nor_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch, often: None, task: str
) -> None:
    with Gate(monkeypatch, task) as gate, running():
        assert gate.entered.wait(30)
        seen_at = wait_until(ProcessHeartbeat.objects.first, what="the first heartbeat").seen_at
        event = publish("flaky.mail")
        wait_until(lambda: states_of(event) == {"flaky": "dispatched"}, what="the event to be dispatched")
        wait_until(lambda: ProcessHeartbeat.objects.get().seen_at > seen_at, what="another heartbeat")
        wait_until(lambda: heartbeat()[0] == BEHIND, what="the task to be reported")
        assert "has not ended" in heartbeat()[1]


def test_a_relay_ends_while_a_task_of_its_maintenance_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Gate(monkeypatch, "redeliver") as gate:
        with running():
            assert gate.entered.wait(30)
        assert not ProcessHeartbeat.objects.exists()


def test_deliveries_that_maintenance_makes_due_wake_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[bool] = []
    wake = Waker.wake

    def wake_and_record(waker: Waker) -> None:
        woken.append(True)
        wake(waker)

    monkeypatch.setattr(Waker, "wake", wake_and_record)
    event = publish("flaky.mail")
    Delivery.objects.update(state="dispatched", confirm_by=Now() - timedelta(seconds=1))
    with running(listen=False, poll_interval=timedelta(hours=1)):
        redelivered = [("dispatched", 1)]
        wait_until(
            lambda: list(event.deliveries.values_list("state", "redeliveries")) == redelivered,
            what="the overdue delivery to be dispatched again",
        )
    assert woken


@pytest.mark.parametrize("end", ["once", "drain"])
def test_a_relay_that_ends_maintains_in_its_loop(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    threads: list[str] = []
    redeliver = Maintenance.redeliver

    def redeliver_and_record(maintenance: Maintenance) -> int:
        threads.append(threading.current_thread().name)
        return redeliver(maintenance)

    monkeypatch.setattr(Maintenance, "redeliver", redeliver_and_record)
    relay_all(**{"drain": False, end: True})
    assert set(threads) == {threading.current_thread().name}


def test_a_failure_of_maintenance_is_logged_once_and_reported_until_it_ends(
    monkeypatch: pytest.MonkeyPatch, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    failing, failures = threading.Event(), []
    failing.set()

    def redeliver(_maintenance: Maintenance) -> int:
        if failing.is_set():
            failures.append(1)
            raise OperationalError("the connection is lost")
        return 0

    monkeypatch.setattr(Maintenance, "redeliver", redeliver)
    old = make_delivery(make_event(created_at=datetime.now(UTC) - timedelta(days=60)), state="succeeded")
    with running():
        reason = "redelivery fails: the connection is lost"
        wait_until(lambda: heartbeat() == (BEHIND, reason), what="the failure to be reported")
        # The other tasks and the dispatch go on.
        wait_until(lambda: not Delivery.objects.filter(pk=old.pk).exists(), what="the event to be pruned")
        event = publish("flaky.mail")
        wait_until(lambda: states_of(event) == {"flaky": "dispatched"}, what="the event to be dispatched")
        wait_until(lambda: len(failures) >= 3, what="redelivery to be tried again")
        failing.clear()
        wait_until(lambda: heartbeat() == (RUNNING, ""), what="the end of the failure to be reported")
    assert caplog.text.count("maintenance of database 'default' waits: redelivery") == 1
    assert f"relay of database 'default': {BEHIND}: {reason}" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_maintenance_thread_that_died_is_started_again(
    monkeypatch: pytest.MonkeyPatch, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    def die_at_first(_maintenance: Maintenance) -> int:
        runs.append(1)
        if len(runs) == 1:
            raise SystemExit
        return 0

    monkeypatch.setattr(redelivery_module, "REDELIVER_INTERVAL_S", 0.05)
    monkeypatch.setattr(Maintenance, "redeliver", die_at_first)
    with running():
        wait_until(lambda: len(runs) > 1, what="redelivery to run again")
    assert "maintenance thread of database 'default' died" in caplog.text
    assert not maintenance_threads()


class Clock:
    """A clock that only the test advances, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("fails", "problem"),
    [(True, "scan fails: no luck"), (False, "scan has not ended: the database or a broker is slow")],
)
def test_a_problem_is_reported_only_after_the_patience(fails: bool, problem: str) -> None:
    clock, runs, go_on = Clock(), threading.Semaphore(0), threading.Event()

    def run() -> TaskRun:
        runs.release()
        if fails:
            raise ValueError("no luck")
        go_on.wait(60)
        return TaskRun()

    thread = MaintenanceThread(
        [MaintenanceTask("scan", run, interval_s=0.01, clock=clock)],
        database="default",
        made_due=lambda: None,
        at_end=lambda: None,
        patience_s=60.0,
        clock=clock,
    )
    thread.ensure_running()
    try:
        assert runs.acquire(timeout=30)
        assert thread.problem() == ""
        clock.now = 59.0
        assert thread.problem() == ""
        clock.now = 61.0
        wait_until(lambda: thread.problem().startswith(problem), what="the problem to be reported")
    finally:
        go_on.set()
        thread.close(30)


def test_pruning_that_does_not_keep_pace_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_task, "PRUNE_CHUNKS_AT_ONCE", 1)
    monkeypatch.setattr(pruning_task, "PruningPass", partial(pruning_task.PruningPass, chunk_size=1))
    for _event in range(4):
        make_event(created_at=datetime.now(UTC) - timedelta(days=60))
    clock, reports = Clock(), list[tuple[str, str]]()
    late = Maintenance(database="default", report=lambda *state: reports.append(state), clock=clock)
    late.run_due_tasks()
    assert late.state() == (RUNNING, "")
    clock.now += PRUNE_PATIENCE_S + 1
    late.run_due_tasks()
    state, reason = late.state()
    assert state == BEHIND
    assert "pruning" in reason
    assert reports[-1] == (BEHIND, reason)
    while Event.objects.exists() or late.state() != (RUNNING, ""):
        clock.now += 60
        late.run_due_tasks()
    late.run_due_tasks()
    assert late.state() == (RUNNING, "")


def test_a_waker_that_is_closed_wakes_nobody() -> None:
    waker = Waker()
    waker.wake()
    assert not waker.was_woken()
    waker.open()
    assert not waker.was_woken()
    waker.wake()
    waker.wake()
    assert waker.was_woken()
    assert not waker.was_woken()
    waker.close()
    waker.wake()
    assert waker.sources == ()
