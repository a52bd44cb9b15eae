"""Runs one scenario, and says what became of the ledger."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from random import Random
from uuid import uuid4

from tests.faults import effort
from tests.faults.report import Result
from tests.faults.scenarios import Scenario
from tests.faults.stage import Stage
from tests.faults.steps.run import Run, work


def check(scenario: Scenario, stage: Stage) -> None:
    """Run a scenario, and require that nothing is lost, twice or out of order, and all is well soon."""
    random = Random(f"{effort.SEED} {scenario.name} {stage.name}")
    sys.stderr.write(f"OUTBOX_FAULTS_SEED={effort.SEED}\n")
    try:
        rounds = effort.ROUNDS if scenario.repeated else 1
        result = Result.sum([run_scenario(scenario, stage, random) for _ in range(rounds)])
        result.write()
        assert (result.lost, result.effects_twice, result.unasked) == (0, 0, 0), result
        assert result.out_of_order == 0, result
        assert result.recovery_s <= result.within_s + effort.MARGIN.total_seconds(), result
    except BaseException:
        # The next scenario starts afresh.
        stage.clear()
        raise


def run_scenario(scenario: Scenario, stage: Stage, random: Random) -> Result:
    """Publish, let things go wrong, and wait until all is well again, or never will be."""
    stage.set_up()
    with ExitStack() as stack:
        run = Run(uuid4().hex, stage, random, stack)
        try:
            return _result(scenario, run)
        except BaseException:
            stage.show()
            raise


def _result(scenario: Scenario, run: Run) -> Result:
    ledger = run.stage.ledger
    with run.stage.publishing(run.name):
        work(run)
        for step in scenario.steps:
            step(run)
        over_at = time.monotonic()
    behind = ledger.count(run.name).lost
    count = ledger.wait_until_even(run.name)
    recovery_s = time.monotonic() - over_at
    if count.lost:
        run.stage.show()
    else:
        ledger.wait_until_settled()
        # Once more: what was on its way twice has arrived by now.
        count = ledger.count(run.name)
    return Result.of(scenario, run.stage.name, count, behind=behind, recovery_s=recovery_s)
