"""The reference tells of every scenario, and of no other."""

from __future__ import annotations

import re
from dataclasses import replace

from outbox import crashes
from tests.faults.ledger import Count
from tests.faults.report import PAGE, TABLE, Result, table
from tests.faults.scenarios import SCENARIOS, SUSPECT_DELAY

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


def test_suspects_wait_as_long_as_the_bounds_say() -> None:
    assert crashes.SUSPECT_DELAY == SUSPECT_DELAY


def test_results_are_put_in_the_order_of_the_scenarios() -> None:
    def result(scenario: str, broker: str) -> Result:
        return Result(scenario, broker, 10, 0, 1, 0, 0, 0, behind=5, recovery_s=0.25, within_s=1.02)

    rows = table([result("late commit", "redis"), result("relay killed", "rabbitmq")]).splitlines()
    assert rows[2:] == [
        "| relay killed | RabbitMQ | 10 | 0 | 1 | 0 | 0 | 5 | 0.2 s | 1.0 s |",
        "| late commit | Redis | 10 | 0 | 1 | 0 | 0 | 5 | 0.2 s | 1.0 s |",
    ]


def test_of_several_rounds_the_one_counts_that_had_least_to_spare() -> None:
    def after(behind: int, recovery_s: float) -> Result:
        count = Count(10, 0, 1, 0, 0, 0)
        return Result.of(SCENARIOS[0], "redis", count, behind=behind, recovery_s=recovery_s)

    long, late = after(1000, 3.0), after(10, 1.5)
    assert Result.sum([long, late]) == replace(late, committed=20, duplicated=2)
