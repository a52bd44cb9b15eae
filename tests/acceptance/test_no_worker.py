"""All workers are stopped: the status says so, and its probe turns red."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

import pytest
from django.db.models import F

from outbox.models import Delivery, ProcessHeartbeat
from tests.conftest import ROOT
from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .folder import Folder
from .stage import relay, wait_for_states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def status(env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run `outbox_status` in a process of its own, as a probe does."""
    command = [sys.executable, str(ROOT / "tests" / "manage.py"), "outbox_status", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def a_minute_passes() -> None:
    """Let all deliveries be due and dispatched a minute earlier."""
    shift = timedelta(seconds=61)
    Delivery.objects.update(available_at=F("available_at") - shift, dispatched_at=F("dispatched_at") - shift)


def test_a_probe_fails_a_minute_after_all_workers_were_stopped(
    redis_env: dict[str, str], folder: Folder
) -> None:
    with relay(redis_env):
        with worker(redis_env) as process:
            publish("filed.mail")
            wait_for_states(succeeded=1)
            wait_until(ProcessHeartbeat.objects.workers().exists, what="the heartbeat of the worker")
            assert status(redis_env, "--max-lag", "60").returncode == 0
            process.terminate()
            assert process.wait() == 0
        assert not ProcessHeartbeat.objects.workers().exists()
        for _number in range(100):
            publish("filed.mail")
        wait_for_states(succeeded=1, dispatched=100)
        a_minute_passes()
        probe = status(redis_env, "--max-lag", "60", "--format", "json")
    assert probe.returncode == 1
    assert "the oldest unconfirmed delivery has waited" in probe.stderr
    report = json.loads(probe.stdout)
    assert (report["verdict"], report["due"], report["unconfirmed"]) == ("trouble", 0, 100)
    assert 60 < report["oldest_unconfirmed_s"] < 3600
    (problem,) = [one for one in report["problems"] if one["kind"] == "no_worker"]
    assert problem["count"] == 100
