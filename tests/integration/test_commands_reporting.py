"""The commands that report: their output, and their exit with 1."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

import outbox
from outbox.durations import format_duration
from outbox.management.commands import outbox_status
from outbox.management.commands._watch import watch
from outbox.models import HandlerStats, PausedHandler, ProcessHeartbeat, Tally
from outbox.operations import health_figures
from outbox.registry import registry
from tests.support.factories import make_delivery

pytestmark = pytest.mark.django_db


def run(name: str, *args: Any) -> str:
    """Run a command as the command line would, and return its output."""
    out = StringIO()
    call_command(name, *map(str, args), stdout=out, stderr=out)
    return out.getvalue()


def record(name: str, *durations_s: float) -> None:
    tally = Tally(dispatched=len(durations_s))
    for duration_s in durations_s:
        tally.count("succeeded", duration_s)
    HandlerStats.objects.add({name: tally})


# ---------------------------------------------------------------- outbox_stats


def test_the_table_of_stats_marks_slow_handlers() -> None:
    record("shop.mail", 0.01, 0.3)
    record("shop.stock", 0.002)
    lines = run("outbox_stats", "--since", "1h", "--slow", "0.1").splitlines()
    assert lines[0].split()[:3] == ["handler", "dispatched", "runs"]
    assert "SLOW: 1 of 2" in lines[1]
    assert lines[2].split()[0] == "shop.stock"
    assert "SLOW" not in lines[2]


def test_stats_can_be_json() -> None:
    record("shop.mail", 0.01, 0.3)
    (found,) = json.loads(run("outbox_stats", "--slow", "0.1", "--format", "json"))
    assert (found["handler"], found["runs"], found["max_s"]) == ("shop.mail", 2, 0.3)
    assert found["slow"]["slow"] == 1


def test_stats_without_runs_are_empty() -> None:
    assert "No handler ran" in run("outbox_stats")
    assert json.loads(run("outbox_stats", "--format", "json")) == []


@pytest.mark.parametrize(
    "arguments", [["--since", "soon"], ["--slow", "fast"], ["--slow", "nan"], ["--since", "9" * 30 + "d"]]
)
def test_a_malformed_duration_is_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match=r"is not a|is too long"):
        run("outbox_stats", *arguments)


# ---------------------------------------------------------------- outbox_status


def test_status_counts_deliveries_by_state_and_live_relays() -> None:
    make_delivery(available_at=timezone.now() - timedelta(seconds=90))
    make_delivery(available_at=timezone.now() + timedelta(hours=1))
    make_delivery(waits_for="batch", available_at=timezone.now() + timedelta(hours=1))
    make_delivery(state="dispatched")
    make_delivery(state="dispatched", confirm_by=timezone.now() - timedelta(hours=1))
    make_delivery(state="failed")
    make_delivery(state="succeeded")
    ProcessHeartbeat.objects.create(id=uuid4(), host="a", pid=1)
    ProcessHeartbeat.objects.create(id=uuid4(), host="b", pid=2, seen_at=timezone.now() - timedelta(hours=1))
    status = json.loads(run("outbox_status", "--format", "json"))
    counts = {
        name: status[name] for name in ("due", "scheduled", "waiting", "unconfirmed", "overdue", "failed")
    }
    assert counts == {"due": 1, "scheduled": 1, "waiting": 1, "unconfirmed": 2, "overdue": 1, "failed": 1}
    assert status["relays_alive"] == 1
    assert 89 < status["oldest_due_s"] < 120


def test_status_counts_no_further_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outbox_status, health_figures):
        monkeypatch.setattr(module, "COUNT_LIMIT", 2)
    for _number in range(3):
        make_delivery(state="failed")
    assert re.search(r"^failed +2\+$", run("outbox_status"), re.MULTILINE)


def test_status_exits_with_1_beyond_the_allowed_lag() -> None:
    make_delivery(available_at=timezone.now() - timedelta(seconds=90))
    with pytest.raises(CommandError, match=r"waited 1\.5\d? min; at most 1 min is allowed") as raised:
        run("outbox_status", "--max-lag", "60")
    assert raised.value.returncode == 1
    run("outbox_status", "--max-lag", "5m")


def test_a_waiting_batch_counts_as_lag_and_a_blocked_key_does_not() -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    make_delivery(waits_for="key", available_at=long_ago)
    run("outbox_status", "--max-lag", "60")
    make_delivery(waits_for="batch", available_at=long_ago)
    with pytest.raises(CommandError, match="--max-lag"):
        run("outbox_status", "--max-lag", "60")


@pytest.fixture
def batch_handler() -> Iterator[str]:
    """Declare a batch handler whose events wait for a day."""

    @outbox.handler("status.*", batch_size=3, batch_wait=timedelta(days=1), name="status.batched")
    def batched(events: list[Any]) -> None:
        pass

    yield "status.batched"
    registry.remove("status.batched")


def _waiting(handler: str, *, published_ago: timedelta) -> None:
    due = timezone.now() - published_ago + timedelta(days=1)
    make_delivery(handler=handler, waits_for="batch", available_at=due)


def _oldest_due_s() -> float:
    return float(json.loads(run("outbox_status", "--format", "json"))["oldest_due_s"])


def test_a_batch_that_is_not_ready_has_no_age(batch_handler: str) -> None:
    for handler in (batch_handler, "not.declared"):
        _waiting(handler, published_ago=timedelta(minutes=3))
    assert _oldest_due_s() == 0.0
    assert re.search(r"oldest due +-$", run("outbox_status"), re.MULTILINE)
    run("outbox_status", "--max-lag", "60")


def test_the_age_of_a_batch_counts_from_the_event_that_made_it_full(batch_handler: str) -> None:
    for minutes in (30, 20):
        _waiting(batch_handler, published_ago=timedelta(minutes=minutes))
    assert _oldest_due_s() == 0.0
    for minutes in (10, 1):
        _waiting(batch_handler, published_ago=timedelta(minutes=minutes))
    assert 600 <= _oldest_due_s() < 660


def test_the_age_of_a_batch_counts_from_the_end_of_its_wait(batch_handler: str) -> None:
    _waiting(batch_handler, published_ago=timedelta(days=1, minutes=5))
    assert 300 <= _oldest_due_s() < 360


def test_the_batch_of_a_paused_handler_has_no_age(batch_handler: str) -> None:
    _waiting(batch_handler, published_ago=timedelta(days=2))
    PausedHandler.objects.pause(batch_handler)
    assert _oldest_due_s() == 0.0


def test_a_negative_duration_keeps_its_unit() -> None:
    assert format_duration(-86396.638) == "-24 h"


@pytest.mark.parametrize("name", ["outbox_status", "outbox_stats", "outbox_prune"])
def test_missing_tables_are_reported_in_one_line(name: str) -> None:
    with connection.cursor() as cursor:
        for table in ("outbox_delivery", "outbox_handlerstats"):
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    with pytest.raises(CommandError, match=r"lacks the outbox's tables; run manage\.py migrate"):
        run(name)


def test_an_unreachable_database_is_reported_in_one_line_with_exit_code_1() -> None:
    env = os.environ | {"DATABASE_URL": "postgres://nobody@127.0.0.1:9/none"}
    command = [sys.executable, "-m", "django", "outbox_status", "--max-lag", "60"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "database 'default' did not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_database_is_refused() -> None:
    with pytest.raises(
        CommandError, match=r"'nowhere' is not served by the outbox; choose from \['default'\]"
    ):
        run("outbox_status", "--database", "nowhere")


def test_a_wrong_setting_is_reported_in_one_line(settings: Any) -> None:
    settings.OUTBOX = {"BATCH_SISE": 5}
    with pytest.raises(CommandError, match=r"BATCH_SISE.*BATCH_SIZE"):
        call_command("outbox_status")


# ---------------------------------------------------------------- outbox_status --watch


@pytest.mark.parametrize("other", [["--format", "json"], ["--max-lag", "1m"], ["--check"]])
def test_a_watch_goes_with_no_check(other: list[str]) -> None:
    with pytest.raises(CommandError, match="--watch goes with no other option"):
        call_command("outbox_status", "--watch", *other)


def test_a_watch_shows_the_report_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outbox_status, "watch", partial(watch, sleep=stop))
    call_command("outbox_status", "--watch", "5", stdout=terminal)
    assert "pending, due" in terminal.getvalue()
    assert "Every 5 s" in terminal.getvalue()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_watch_goes_on_after_its_connection_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def watch_three_times(report: Any, _stream: Any, *, interval_s: float) -> None:
        shown.append(report())
        with closing(connection.copy()) as other, other.cursor() as cursor:
            # Returns when the session has ended.
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])
        with pytest.raises(CommandError):
            report()
        shown.append(report())

    monkeypatch.setattr(outbox_status, "watch", watch_three_times)
    call_command("outbox_status", "--watch")
    assert ["pending, due" in text for text in shown] == [True, True]
