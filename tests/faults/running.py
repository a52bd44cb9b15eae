"""Runs one scenario and checks the ledger."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from random import Random
from uuid import uuid4

from . import effort
from .report import Result
from .scenarios import Scenario
from .stage import Stage
from .steps.run import Run, work


def check(scenario: Scenario, stage: Stage) -> None:
    """Run a scenario; require that no effect is lost, twice or out of order, and a recovery in time."""
    random = Random(f"{effort.SEED} {scenario.name} {stage.name}")
    sys.stderr.write(f"OUTBOX_FAULTS_SEED={effort.SEED}\n")
    try:
        rounds = effort.ROUNDS if scenario.repeated else 1
        result = Result.sum([run_scenario(scenario, stage, random) for _ in range(rounds)])
        result.write()
        assert (result.lost, result.transactional_duplicates, result.rolled_back) == (0, 0, 0), result
        assert result.out_of_order == 0, result
        assert result.recovery_s <= result.within_s + effort.MARGIN.total_seconds(), result
    except BaseException:
        # The next scenario starts with new processes.
        stage.clear()
        raise


def run_scenario(scenario: Scenario, stage: Stage, random: Random) -> Result:
    """Publish, run the steps of the scenario, and wait for the recovery."""
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
    backlog = ledger.count(run.name).lost
    count = ledger.wait_until_complete(run.name)
    recovery_s = time.monotonic() - over_at
    if count.lost:
        run.stage.show()
    else:
        ledger.wait_until_settled()
        # Duplicates that were in a queue have run by now.
        count = ledger.count(run.name)
    return Result.of(scenario, run.stage.name, count, backlog=backlog, recovery_s=recovery_s)
