"""Two databases of one project, the second of which does not answer: the first one does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now

import outbox
from outbox.confirmations import FlushPolicy, confirmations
from outbox.confirmations.outcome import Outcome
from outbox.events import DeliveryRef
from outbox.management.commands import _relay_checks, run_relay
from outbox.models import Delivery, Event, HandlerStats, ProcessHeartbeat
from outbox.own_connection import own_connection
from outbox.worker import poison
from outbox.worker.inflight_log import InflightLog
from outbox.worker.poison import Quarantine, site_name
from relay import process
from relay.loop import Relay
from relay.process import run_relays
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import clear_broker, flush, worker
from tests.support.factories import make_delivery, make_event
from tests.support.processes import wait_until

BOTH = ("default", "second")

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=BOTH)]


@pytest.fixture(autouse=True)
def both_served(settings: Any, tmp_path: Path) -> Iterator[None]:
    settings.OUTBOX = {"DATABASES": list(BOTH), "CRASH_DIR": tmp_path}
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture(params=["silent_port", "closed_port"])
def second_is_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let new connections to the second database find a server that never answers, or none."""
    # While the test runs, the listener is open; the threads end when it closes.
    port: int = request.getfixturevalue(request.param)
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings["second"], "HOST", "127.0.0.1")
        patch.setitem(connections.settings["second"], "PORT", str(port))
        patch.setattr(confirmations, "policy", FlushPolicy(close_timeout_s=1))
        yield


def test_confirmations_do_not_wait_for_another_database(second_is_away: None) -> None:
    with transaction.atomic():
        outbox.publish("test.recorded")
    run_relays(["default"], drain=True)
    confirmations.add(Outcome(elsewhere(), "second", "mail", "succeeded", "succeeded", duration_s=0.01))
    with worker():
        wait_until(
            lambda: set(Delivery.objects.values_list("state", flat=True)) == {"succeeded"},
            what="the deliveries of the first database to be confirmed",
        )


@contextmanager
def relaying_both() -> Iterator[None]:
    """Run a relay of each database, each in a thread of its own as `run_relay` does."""

    def run(alias: str) -> None:
        with own_connection(alias):
            Relay(RelayOptions(database=alias), stop=stop).run()

    with Stop() as stop, ThreadPoolExecutor(len(BOTH)) as pool:
        relays = [pool.submit(run, alias) for alias in reversed(BOTH)]
        try:
            yield
        finally:
            stop.request()
        for relay in relays:
            relay.result(60)


def test_maintenance_and_statistics_do_not_wait_for_another_database(second_is_away: None) -> None:
    old = make_event(created_at=datetime.now(UTC) - timedelta(days=60))
    lost = make_delivery(handler="record", state="dispatched")
    stale = make_delivery(handler="record", waits_for="resume")
    Delivery.objects.filter(pk=lost.pk).update(confirm_by=Now() - timedelta(seconds=1))
    both = Delivery.objects.filter(pk__in=[lost.pk, stale.pk], state="dispatched", waits_for="")
    with relaying_both():
        wait_until(lambda: both.filter(confirm_by__gt=Now()).count() == 2, what="both to be dispatched")
        wait_until(lambda: not Event.objects.filter(pk=old.pk).exists(), what="the event to be pruned")
        wait_until(lambda: ProcessHeartbeat.objects.filter(state="running").exists(), what="a heartbeat")
        wait_until(
            lambda: HandlerStats.objects.filter(handler="record", dispatched=2).exists(),
            what="the statistics of the first database",
        )


def test_a_command_starts_the_relay_of_one_database_while_another_does_not_answer(
    second_is_away: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(_relay_checks, "CHECK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(run_relay, "run_relays", lambda databases, **_options: started.extend(databases))
    call_command("run_relay", stdout=StringIO())
    assert started == list(BOTH)


def test_a_drain_counts_the_backlog_of_one_database_while_another_does_not_answer(
    second_is_away: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_delivery()
    monkeypatch.setattr(process, "COUNT_TIMEOUT_S", 0.2)
    assert [process._count_due(alias, ()) for alias in BOTH] == [1, 0]


def test_closing_waits_for_no_database_twice(second_is_away: None, caplog: pytest.LogCaptureFixture) -> None:
    delivery = make_delivery(state="dispatched")
    confirmations.add(Outcome(elsewhere(), "second", "mail", "succeeded", "succeeded", duration_s=0.01))
    confirmations.add(Outcome(delivery.ref, "default", "mail", "succeeded", "succeeded", duration_s=0.01))
    confirmations.close()
    delivery.refresh_from_db()
    assert delivery.state == "succeeded"
    assert "1 outcomes are not confirmed yet in database 'second'" in caplog.text


def elsewhere() -> DeliveryRef:
    """Return a delivery of a database that is away."""
    return DeliveryRef(7, str(uuid4()))


def crash(folder: Path, **deliveries: DeliveryRef) -> None:
    """Leave the in-flight logs of a worker that was killed while it ran deliveries of several databases."""
    for alias, delivery in deliveries.items():
        inflight_log = InflightLog(folder, site_name(alias))
        with inflight_log.entry(alias, [delivery]):
            inflight_log.close()


def test_a_crash_is_counted_once_while_another_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(alias: str, *args: Any) -> None:
        if alias == "second":
            raise OperationalError("away")
        count(alias, *args)

    first = make_delivery(state="dispatched")
    count = poison._count
    crash(tmp_path, default=first.ref, second=elsewhere())
    monkeypatch.setattr(poison, "_count", refuse)
    quarantine = Quarantine()
    for _ in range(4):
        quarantine.scan()
    first.refresh_from_db()
    assert (first.crashes, first.state) == (1, "dispatched")
    # The crash of the other database waits until it is back.
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_counts_the_crashes_of_one_database_while_another_does_not_answer(
    tmp_path: Path, second_is_away: None
) -> None:
    first = make_delivery(state="dispatched")
    crash(tmp_path, second=elsewhere(), default=first.ref)
    quarantine = Quarantine(scan_interval_s=0.05, boot_timeout_s=0.5)
    quarantine.start()
    try:
        wait_until(lambda: Delivery.objects.get(pk=first.pk).crashes == 1, what="the crash to be counted")
        crash(tmp_path, default=first.ref)
        wait_until(lambda: Delivery.objects.get(pk=first.pk).crashes == 2, what="the next one to be counted")
    finally:
        quarantine.stop()
