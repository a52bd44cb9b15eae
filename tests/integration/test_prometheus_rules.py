"""The alert rules and the dashboard: they use existing metrics, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import outbox.contrib.prometheus
from outbox.contrib.prometheus import OutboxCollector
from outbox.operations.recent_health import RecentHealth

pytestmark = pytest.mark.django_db

FOLDER = Path(outbox.contrib.prometheus.__file__).parent
ALERTS, DASHBOARD = FOLDER / "alerts.yml", FOLDER / "dashboard.json"

# An hour without a relay, with a handler that fails in the last minutes.
SCENARIO = f"""
rule_files: ["{ALERTS}"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'outbox_up{{database="default"}}'
        values: '1x60'
      - series: 'outbox_processes_alive{{database="default",kind="relay"}}'
        values: '1x30 0x30'
      - series: 'outbox_processes_alive{{database="default",kind="worker"}}'
        values: '2x60'
      - series: 'outbox_runs_total{{database="default",handler="shop.mail",result="failed"}}'
        values: '0x50 3x10'
      - series: 'outbox_runs_total{{database="default",handler="shop.mail",result="succeeded"}}'
        values: '0+10x60'
    alert_rule_test:
      - alertname: OutboxNoRelay
        eval_time: 30m
      - alertname: OutboxNoRelay
        eval_time: 40m
        exp_alerts:
          - exp_labels: {{severity: critical, database: default, kind: relay}}
            exp_annotations:
              summary: No relay of database default is alive, so nothing is dispatched
      - alertname: OutboxNoWorker
        eval_time: 60m
      - alertname: OutboxHandlerFails
        eval_time: 45m
      - alertname: OutboxHandlerFails
        eval_time: 55m
        exp_alerts:
          - exp_labels: {{severity: warning, database: default, handler: shop.mail, result: failed}}
            exp_annotations:
              summary: shop.mail has failed for good 3 times in 15 minutes
"""


@pytest.fixture
def promtool() -> str:
    """Return the path of Prometheus' own tool."""
    return shutil.which("promtool") or pytest.skip("no promtool; Debian's package prometheus has it")


@pytest.fixture
def exposition() -> bytes:
    registry = CollectorRegistry()
    registry.register(OutboxCollector(health=RecentHealth()))
    return generate_latest(registry)


def run(*command: str, given: bytes = b"") -> None:
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=["alerts", "dashboard"])
def test_every_metric_of_the_files_exists(path: Path, exposition: bytes) -> None:
    known = set()
    for family in text_string_to_metric_families(exposition.decode()):
        known |= {family.name, f"{family.name}_total", f"{family.name}_bucket"}
    used = set(re.findall(r"(?<!manage\.py )\boutbox_\w+", path.read_text()))
    assert used
    assert used <= known


def test_the_dashboard_is_json_with_panels() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 5
    assert all(panel["targets"] for panel in dashboard["panels"])


def test_promtool_accepts_the_rules_and_the_metrics(promtool: str, exposition: bytes) -> None:
    run(promtool, "check", "rules", str(ALERTS))
    run(promtool, "check", "metrics", given=exposition)


def test_the_alerts_fire_in_time(promtool: str, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yml"
    scenario.write_text(SCENARIO)
    run(promtool, "test", "rules", str(scenario))


def test_the_page_lists_every_metric(exposition: bytes) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    listed = {name.removesuffix("_total") for name in re.findall(r"^\| `(outbox_\w+)`", page, re.MULTILINE)}
    assert listed == {family.name for family in text_string_to_metric_families(exposition.decode())}
