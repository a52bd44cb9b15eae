"""The results of the scenarios, and the reference's table: `python -m tests.faults.report results.jsonl`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from . import effort
from .ledger import Count
from .scenarios import SCENARIOS, Scenario

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "faults.md"
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
COUNTS = ("committed", "lost", "duplicates", "transactional_duplicates", "out_of_order", "backlog")
BROKERS = {"redis": "Redis", "rabbitmq": "RabbitMQ"}


@dataclass(frozen=True)
class Result:
    """The result of one scenario.

    Args:
        backlog: effects that were missing when the fault ended.
        within_s: the recovery that is allowed, with the work on the backlog.
    """

    scenario: str
    broker: str
    committed: int
    lost: int
    duplicates: int
    transactional_duplicates: int
    rolled_back: int
    out_of_order: int
    backlog: int
    recovery_s: float
    within_s: float

    @classmethod
    def of(cls, scenario: Scenario, broker: str, count: Count, *, backlog: int, recovery_s: float) -> Self:
        """Build a result from the counts and the time of one round."""
        within_s = (scenario.within + backlog * effort.WORK).total_seconds()
        return cls(
            scenario.name, broker, **asdict(count), backlog=backlog, recovery_s=recovery_s, within_s=within_s
        )

    @classmethod
    def sum(cls, rounds: Sequence[Self]) -> Self:
        """Add the counts of all rounds, and keep the times of the round that was closest to its limit."""
        counts = {one.name: sum(getattr(each, one.name) for each in rounds) for one in fields(Count)}
        return replace(max(rounds, key=lambda one: one.recovery_s - one.within_s), **counts)

    def write(self) -> None:
        """Append the result to the file that `OUTBOX_FAULTS_RESULTS` names, if it is set."""
        if path := os.environ.get("OUTBOX_FAULTS_RESULTS"):
            with Path(path).open("a") as file:
                file.write(f"{json.dumps(asdict(self))}\n")


def table(results: list[Result]) -> str:
    """Return the results as a table, in the order of the scenarios."""
    order = [scenario.name for scenario in SCENARIOS]
    columns = ["scenario", "broker", *(name.replace("_", " ") for name in COUNTS), "recovery", "allowed"]
    lines = [f"| {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * (len(columns) - 2)}"]
    for one in sorted(results, key=lambda one: (order.index(one.scenario), list(BROKERS).index(one.broker))):
        counts = " | ".join(str(getattr(one, name)) for name in COUNTS)
        seconds = f"{one.recovery_s:.1f} s | {one.within_s:.1f} s"
        lines.append(f"| {one.scenario} | {BROKERS[one.broker]} | {counts} | {seconds} |")
    return "\n".join(lines) + "\n"


def write_page(results: list[Result]) -> None:
    """Write the table into the reference."""
    PAGE.write_text(TABLE.sub(lambda _: table(results), PAGE.read_text()))


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text().splitlines()
    write_page([Result(**json.loads(line)) for line in lines])
