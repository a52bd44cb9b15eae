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


def run_scenario(scenario: Scenario, stage: Stage) -> Result:
    """Publish, let things go wrong, and wait until all is well again, or never will be."""
    name = uuid4().hex
    random = Random(f"{effort.SEED} {scenario.name} {stage.name}")
    with ExitStack() as stack:
        run = Run(name, stage, random, stack)
        with stage.publishing(name):
            work(run)
            for step in scenario.steps * (effort.ROUNDS if scenario.repeated else 1):
                step(run)
            over_at = time.monotonic()
        count = stage.ledger.wait_until_even(name)
        recovery_s = time.monotonic() - over_at
        if not count.lost:
            stage.ledger.wait_until_settled()
            # Once more: what was on its way twice has arrived by now.
            count = stage.ledger.count(name)
    return Result.of(scenario, stage.name, count, recovery_s)


def check(scenario: Scenario, stage: Stage) -> None:
    """Run a scenario, and require that nothing is lost, nothing happens twice, and all is well soon."""
    sys.stderr.write(f"OUTBOX_FAULTS_SEED={effort.SEED}\n")
    stage.set_up()
    try:
        result = run_scenario(scenario, stage)
        result.write()
        assert (result.lost, result.effects_twice, result.unasked) == (0, 0, 0), result
        assert result.recovery_s <= result.within_s + effort.MARGIN.total_seconds(), result
    except BaseException:
        # The next scenario starts afresh.
        stage.clear(failed=True)
        raise
