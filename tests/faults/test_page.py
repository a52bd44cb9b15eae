"""The reference describes every scenario, and no other."""

from __future__ import annotations

import re
from dataclasses import replace

from outbox.worker import poison

from .ledger import Count
from .report import PAGE, TABLE, Result, table
from .scenarios import QUARANTINE_DELAY, SCENARIOS

FIRST_COLUMN = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)


def test_each_scenario_has_its_paragraph() -> None:
    # The first sentence of a paragraph may be wrapped.
    found = re.findall(r"^### ([^\n]+)\n\n(.+?)\.\s", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [(name, " ".join(fault.split()).lower()) for name, fault in found] == [
        (scenario.name, scenario.fault.lower()) for scenario in SCENARIOS
    ]


def test_the_table_has_every_scenario_with_each_of_its_brokers() -> None:
    results = TABLE.search(PAGE.read_text())
    assert results
    rows = [name for name in FIRST_COLUMN.findall(results[0]) if name not in ("scenario", "---")]
    assert rows == [scenario.name for scenario in SCENARIOS for _ in scenario.with_brokers]


def test_the_header_of_the_table_is_that_of_the_report() -> None:
    results = TABLE.search(PAGE.read_text())
    assert results
    assert results[0].splitlines()[:2] == table([]).splitlines()


def test_the_quarantine_delay_is_the_one_of_the_bounds() -> None:
    assert poison.QUARANTINE_DELAY == QUARANTINE_DELAY


def test_results_are_sorted_in_the_order_of_the_scenarios() -> None:
    def result(scenario: str, broker: str) -> Result:
        return Result(scenario, broker, 10, 0, 1, 0, 0, 0, backlog=5, recovery_s=0.25, within_s=1.02)

    rows = table([result("late commit", "redis"), result("relay killed", "rabbitmq")]).splitlines()
    assert rows[2:] == [
        "| relay killed | RabbitMQ | 10 | 0 | 1 | 0 | 0 | 5 | 0.2 s | 1.0 s |",
        "| late commit | Redis | 10 | 0 | 1 | 0 | 0 | 5 | 0.2 s | 1.0 s |",
    ]


def test_the_times_are_those_of_the_round_closest_to_its_limit() -> None:
    def after(backlog: int, recovery_s: float) -> Result:
        count = Count(10, 0, 1, 0, 0, 0)
        return Result.of(SCENARIOS[0], "redis", count, backlog=backlog, recovery_s=recovery_s)

    long, late = after(1000, 3.0), after(10, 1.5)
    assert Result.sum([long, late]) == replace(late, committed=20, duplicates=2)
