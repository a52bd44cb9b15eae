"""The reference tells of every scenario, and of no other."""

from __future__ import annotations

import re

from tests.faults.report import PAGE, TABLE, Result, table
from tests.faults.scenarios import SCENARIOS

COLUMN = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)


def test_each_scenario_has_its_paragraph() -> None:
    found = re.findall(r"^### (.+)\n\n(.+?)\. ", PAGE.read_text(), re.MULTILINE)
    assert [(name, says.lower()) for name, says in found] == [
        (scenario.name, scenario.says.lower()) for scenario in SCENARIOS
    ]


def test_the_table_of_the_reference_has_every_scenario_with_each_of_its_brokers() -> None:
    results = TABLE.search(PAGE.read_text())
    assert results
    rows = [name for name in COLUMN.findall(results[0]) if name not in ("scenario", "---")]
    assert rows == [scenario.name for scenario in SCENARIOS for _ in scenario.with_brokers]


def test_results_are_put_in_the_order_of_the_scenarios() -> None:
    def result(scenario: str, broker: str) -> Result:
        return Result(scenario, broker, 10, 0, 1, 0, 0, 0, recovery_s=0.25, within_s=1)

    rows = table([result("late commit", "redis"), result("relay killed", "rabbitmq")]).splitlines()
    assert rows[2:] == [
        "| relay killed | RabbitMQ | 10 | 0 | 1 | 0 | 0 | 0.2 s | 1 s |",
        "| late commit | Redis | 10 | 0 | 1 | 0 | 0 | 0.2 s | 1 s |",
    ]
