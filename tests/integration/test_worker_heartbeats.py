"""The heartbeats of workers: written while they run, through outages, and deleted at their end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db import OperationalError
from django.db.models.functions import Now

import outbox
from outbox.models import ProcessHeartbeat
from outbox.models.heartbeat import ProcessHeartbeatQuerySet
from outbox.observability import telemetry
from outbox.worker import heartbeat_thread
from relay.maintenance import Maintenance
from tests.support.data_flow import clear_broker, worker
from tests.support.factories import make_relay
from tests.support.processes import wait_until
from tests.support.signals import sent
from tests.testapp.handlers import OTHER_QUEUE, QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def empty_broker() -> Iterator[None]:
    clear_broker()
    yield
    clear_broker()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let heartbeats follow each other without a noticeable wait."""
    start = heartbeat_thread.HeartbeatThread.__init__

    def start_soon(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs, interval_s=0.01)

    monkeypatch.setattr(heartbeat_thread.HeartbeatThread, "__init__", start_soon)


def workers() -> list[ProcessHeartbeat]:
    return list(ProcessHeartbeat.objects.workers())


def test_a_worker_has_a_row_with_its_queues_until_it_stops() -> None:
    with worker(queues={QUEUE, OTHER_QUEUE}):
        (row,) = wait_until(workers, what="the heartbeat of the worker")
        assert (row.host, row.pid) == (socket.gethostname(), os.getpid())
        assert (row.state, row.threads, row.version) == ("running", 4, outbox.__version__)
        assert row.queue_names == sorted({QUEUE, OTHER_QUEUE})
        assert ProcessHeartbeat.objects.alive().workers().exists()
        assert not ProcessHeartbeat.objects.relays().exists()
    assert workers() == []


def test_a_worker_without_a_list_of_queues_serves_all_declared_ones() -> None:
    with worker():
        (row,) = wait_until(workers, what="the heartbeat of the worker")
    declared = dramatiq.get_broker().get_declared_queues()
    assert set(row.queue_names) == {name for name in declared if not name.endswith(".DQ")}


def test_heartbeats_are_repeated(soon: None) -> None:
    with worker():
        (row,) = wait_until(workers, what="the first heartbeat")
        ProcessHeartbeat.objects.filter(pk=row.pk).update(seen_at=Now() - timedelta(hours=1))
        wait_until(ProcessHeartbeat.objects.alive().exists, what="another heartbeat")


def test_a_worker_that_stops_says_so_while_its_handlers_end() -> None:
    with worker() as working:
        wait_until(workers, what="the heartbeat of the worker")
        working.broker.emit_before("worker_shutdown", working)
        wait_until(ProcessHeartbeat.objects.filter(state="stopping").exists, what="the state to change")


def test_heartbeats_survive_an_outage_which_is_reported_once(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, failures = ProcessHeartbeatQuerySet.beat, []

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        failures.append(1)
        raise OperationalError("no route")

    with (
        sent(telemetry.worker_in_trouble) as troubles,
        sent(telemetry.worker_recovered) as recoveries,
        worker(),
    ):
        wait_until(workers, what="the first heartbeat")
        monkeypatch.setattr(ProcessHeartbeatQuerySet, "beat", fail)
        wait_until(lambda: len(failures) > 2, what="several heartbeats to fail")
        monkeypatch.setattr(ProcessHeartbeatQuerySet, "beat", beat)
        ProcessHeartbeat.objects.update(seen_at=Now() - timedelta(hours=1))
        wait_until(ProcessHeartbeat.objects.alive().exists, what="a heartbeat after the outage")
        wait_until(lambda: recoveries, what="the recovery to be reported")
    assert troubles == [{"database": "default", "state": "database away", "error": "no route"}]
    (recovery,) = recoveries
    assert recovery.pop("duration_s") > 0
    assert recovery == {"database": "default", "state": "running"}
    assert workers() == []


def test_the_row_of_a_worker_that_died_is_forgotten_after_a_day() -> None:
    for hours in (23, 25):
        make_relay(kind="worker", host=f"{hours}h", seen_at=Now() - timedelta(hours=hours))
    Maintenance(database="default").pruning.prune()
    assert [row.host for row in workers()] == ["23h"]


def test_a_heartbeat_keeps_the_time_of_a_state_until_the_state_changes() -> None:
    row = make_relay(state="broker away", state_since=Now() - timedelta(minutes=5))
    row.refresh_from_db()
    ProcessHeartbeat.objects.beat(row.pk, state="broker away")
    same = ProcessHeartbeat.objects.get()
    assert same.state_since == row.state_since
    ProcessHeartbeat.objects.beat(row.pk, state="running")
    assert ProcessHeartbeat.objects.get().state_since > row.state_since
