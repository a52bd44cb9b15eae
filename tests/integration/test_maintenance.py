"""Maintenance tasks run in time, and the deliveries that they make due are dispatched at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db.models.functions import Now

from outbox.models import Delivery, Event, PausedHandler
from outbox.operations.pruning import PruningPass
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.maintenance import Maintenance
from relay.maintenance_task import MaintenanceTask, TaskRun
from relay.pruning_task import PRUNE_CHUNKS_AT_ONCE
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import clear_broker, flush
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db(transaction=True)


class Waits(Stop):
    """Records the waits instead of waiting; stops the relay after 50 of them.

    Args:
        step_s: how far each wait advances the clock.
    """

    def __init__(self, *, step_s: float = 0.0) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._step_s = step_s

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        self.waits.append(timeout_s)
        if len(self.waits) == 50:
            self.request()
        return False

    def clock(self) -> float:
        return len(self.waits) * self._step_s


def in_the_loop(**options: Any) -> RelayOptions:
    """Return the options of a relay that maintains in its loop, where the clock of a test counts."""
    hour = timedelta(hours=1)
    return RelayOptions(
        database="default", listen=False, maintain_beside=False, poll_interval=hour, **options
    )


@pytest.fixture(autouse=True)
def clean_broker() -> Iterator[None]:
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_redelivered_deliveries_are_dispatched_before_the_next_wait(
    monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    make_delivery(handler="record", state="dispatched")
    redeliveries: list[int] = []
    sends: list[int] = []
    # Every task is due after each wait.
    with Waits(step_s=3600) as stop:

        def redeliver_overdue(maintenance: Maintenance) -> int:
            redeliveries.append(len(stop.waits))
            if len(redeliveries) == when:
                Delivery.objects.update(confirm_by=Now() - timedelta(seconds=1))
            return redeliver(maintenance)

        def send_and_stop(dispatcher: Dispatcher, *args: Any, **options: Any) -> Any:
            sends.append(len(stop.waits))
            stop.request()
            return send(dispatcher, *args, **options)

        send, redeliver = Dispatcher.send, Maintenance.redeliver
        monkeypatch.setattr(Maintenance, "redeliver", redeliver_overdue)
        monkeypatch.setattr(Dispatcher, "send", send_and_stop)
        options = in_the_loop(clock=stop.clock)
        Relay(options, stop=stop).run()
    assert sends == [redeliveries[when - 1]]


def test_a_relay_with_a_long_poll_interval_checks_for_overdue_deliveries_in_time(settings: Any) -> None:
    settings.OUTBOX = {"CONFIRM_TIMEOUT": 4}
    with Waits() as stop:
        Relay(in_the_loop(), stop=stop).run()
    assert max(stop.waits) <= 1


@pytest.mark.parametrize(("took_s", "next_after_s"), [(0.1, 10), (2, 40), (50, 60)])
def test_a_task_runs_less_often_when_it_takes_more_than_its_share(took_s: float, next_after_s: float) -> None:
    now = 0.0

    def run() -> TaskRun:
        nonlocal now
        now += took_s
        return TaskRun(3)

    task = MaintenanceTask("scan", run, interval_s=10, share=0.05, clock=lambda: now)
    assert task.run_if_due() == 3
    assert task.due_at == pytest.approx(next_after_s)
    assert task.run_if_due() == 0
    now = next_after_s
    assert task.run_if_due() == 3


def test_a_task_that_has_more_to_do_runs_again_soon() -> None:
    now, left = 0.0, 25

    def run() -> TaskRun:
        nonlocal now, left
        now += 0.1
        done = min(left, 10)
        left -= done
        return TaskRun(done, has_more=done == 10)

    task = MaintenanceTask("resume", run, interval_s=10, share=0.05, busy_share=0.2, clock=lambda: now)
    waits = []
    for _ in range(3):
        started, _done = now, task.run_if_due()
        waits.append(task.due_at - started)
        now = task.due_at
    assert waits == pytest.approx([0.5, 0.5, 10])


@pytest.mark.parametrize("drain", [True, False])
def test_a_relay_finishes_the_resumption_of_a_long_backlog(
    monkeypatch: pytest.MonkeyPatch, drain: bool
) -> None:
    monkeypatch.setattr("outbox.models.pause.RESUME_CHUNK", 2)
    monkeypatch.setattr("relay.loop.Maintenance", partial(Maintenance, key_chunk=3))
    for _ in range(10):
        make_delivery(handler="record", waits_for="resume")
    PausedHandler.objects.pause("record")
    PausedHandler.objects.resume("record")
    assert Delivery.objects.filter(waits_for="resume").count() == 8
    with Waits(step_s=1) as stop:
        Relay(in_the_loop(drain=drain, clock=stop.clock), stop=stop).run()
    assert not Delivery.objects.pending().exists()


def fail() -> TaskRun:
    raise ZeroDivisionError


def test_a_task_that_fails_is_due_again_after_its_interval() -> None:
    now = 0.0
    task = MaintenanceTask("fail", fail, interval_s=10, clock=lambda: now)
    with pytest.raises(ZeroDivisionError):
        task.run_if_due()
    assert task.due_at == 10
    assert task.run_if_due() == 0


def test_pruning_continues_until_no_event_is_past_its_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = partial(PruningPass, chunk_size=1)
    monkeypatch.setattr("relay.pruning_task.PruningPass", one_by_one)
    for _event in range(3 * PRUNE_CHUNKS_AT_ONCE):
        make_event(created_at=datetime.now(UTC) - timedelta(days=60))
    maintenance = Maintenance(database="default", clock=lambda: 0.0)
    deleted = []
    while Event.objects.exists():
        before = Event.objects.count()
        maintenance.run_due_tasks()
        deleted.append(before - Event.objects.count())
    assert deleted == [PRUNE_CHUNKS_AT_ONCE] * 3


# ---------------------------------------------------------------- the line of a busy minute


def test_a_relay_logs_a_busy_minute_and_no_idle_one(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    caplog.set_level(logging.INFO, "relay")
    maintenance = Maintenance(database="default", clock=lambda: now)
    maintenance.note_dispatched(5, 0.01)
    maintenance.run_due_tasks()
    assert "dispatched 5 deliveries" not in caplog.text
    now = 61.0
    maintenance.run_due_tasks()
    now = 122.0
    maintenance.run_due_tasks()
    lines = [text for text in caplog.messages if text.startswith("dispatched ")]
    assert len(lines) == 1
    assert lines[0].startswith("dispatched 5 deliveries of database 'default' in 1 batches within 1.02 min")
