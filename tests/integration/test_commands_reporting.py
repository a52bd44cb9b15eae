"""The commands that report: what they print, and when they exit with 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from outbox.management.commands import outbox_status
from outbox.models import HandlerStats, RelayHeartbeat, Tally
from tests.factories import make_delivery

pytestmark = pytest.mark.django_db


def run(name: str, *args: Any) -> str:
    """Run a command as the command line would, and return what it printed."""
    out = StringIO()
    call_command(name, *map(str, args), stdout=out, stderr=out)
    return out.getvalue()


def record(name: str, *durations_s: float) -> None:
    tally = Tally(dispatched=len(durations_s))
    for duration_s in durations_s:
        tally.count("succeeded", duration_s)
    HandlerStats.objects.add({name: tally})


# ---------------------------------------------------------------- outbox_stats


def test_stats_are_a_table_that_marks_slow_handlers() -> None:
    record("shop.mail", 0.01, 0.3)
    record("shop.stock", 0.002)
    lines = run("outbox_stats", "--since", "1h", "--slow", "0.1").splitlines()
    assert lines[0].split()[:3] == ["handler", "dispatched", "runs"]
    assert "SLOW: 1 of 2" in lines[1]
    assert lines[2].split()[0] == "shop.stock"
    assert "SLOW" not in lines[2]


def test_stats_are_json_for_programs() -> None:
    record("shop.mail", 0.01, 0.3)
    (found,) = json.loads(run("outbox_stats", "--slow", "0.1", "--format", "json"))
    assert (found["handler"], found["runs"], found["max_s"]) == ("shop.mail", 2, 0.3)
    assert found["slow"]["slow"] == 1


def test_stats_of_nothing_say_so() -> None:
    assert "No handler ran" in run("outbox_stats")
    assert json.loads(run("outbox_stats", "--format", "json")) == []


@pytest.mark.parametrize(
    "arguments", [["--since", "soon"], ["--slow", "fast"], ["--slow", "nan"], ["--since", "9" * 30 + "d"]]
)
def test_what_is_no_duration_is_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match=r"is not a|is too long"):
        run("outbox_stats", *arguments)


# ---------------------------------------------------------------- outbox_status


def test_status_counts_what_waits() -> None:
    make_delivery(available_at=timezone.now() - timedelta(seconds=90))
    make_delivery(available_at=timezone.now() + timedelta(hours=1))
    make_delivery(held="batch", available_at=timezone.now() + timedelta(hours=1))
    make_delivery(status="dispatched")
    make_delivery(status="dispatched", confirm_by=timezone.now() - timedelta(hours=1))
    make_delivery(status="failed")
    make_delivery(status="succeeded")
    RelayHeartbeat.objects.create(id=uuid4(), host="a", pid=1)
    RelayHeartbeat.objects.create(id=uuid4(), host="b", pid=2, seen_at=timezone.now() - timedelta(hours=1))
    status = json.loads(run("outbox_status", "--format", "json"))
    counts = {name: status[name] for name in ("due", "scheduled", "held", "dispatched", "overdue", "failed")}
    assert counts == {"due": 1, "scheduled": 1, "held": 1, "dispatched": 2, "overdue": 1, "failed": 1}
    assert status["relays_alive"] == 1
    assert 89 < status["oldest_due_s"] < 120


def test_status_counts_no_further_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_status, "COUNT_LIMIT", 2)
    for _number in range(3):
        make_delivery(status="failed")
    assert "2+" in run("outbox_status")


def test_status_exits_with_1_beyond_the_allowed_lag() -> None:
    make_delivery(available_at=timezone.now() - timedelta(seconds=90))
    with pytest.raises(CommandError, match=r"waited 1\.5\d? min; --max-lag allows 1 min") as raised:
        run("outbox_status", "--max-lag", "60")
    assert raised.value.returncode == 1
    run("outbox_status", "--max-lag", "5m")


def test_a_batch_that_nobody_takes_is_a_lag_and_a_blocked_lane_is_none() -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    make_delivery(held="lane", available_at=long_ago)
    run("outbox_status", "--max-lag", "60")
    make_delivery(held="batch", available_at=long_ago)
    with pytest.raises(CommandError, match="--max-lag"):
        run("outbox_status", "--max-lag", "60")


@pytest.mark.parametrize("name", ["outbox_status", "outbox_stats", "outbox_prune"])
def test_missing_tables_are_a_line_and_no_traceback(name: str) -> None:
    with connection.cursor() as cursor:
        for table in ("outbox_delivery", "outbox_handlerstats"):
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    with pytest.raises(CommandError, match=r"lacks the outbox's tables; run manage\.py migrate"):
        run(name)


def test_a_database_that_does_not_answer_is_a_line_and_exit_code_1() -> None:
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


def test_a_wrong_setting_is_a_line_and_no_traceback(settings: Any) -> None:
    settings.OUTBOX = {"BATCH_SISE": 5}
    with pytest.raises(CommandError, match=r"BATCH_SISE.*BATCH_SIZE"):
        call_command("outbox_status")
