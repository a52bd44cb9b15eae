"""A running scenario, and the building blocks of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from random import Random

from tests.faults.stage import Stage
from tests.support.processes import wait_until


class Run:
    """One run of a scenario: its name in the ledger, its stage and its random numbers.

    Args:
        stack: undone after the recovery.
    """

    def __init__(self, name: str, stage: Stage, random: Random, stack: ExitStack) -> None:
        self.name = name
        self.stage = stage
        self.random = random
        self.stack = stack

    def wait_for_effects(self, more: int, deadline_s: float = 60) -> None:
        """Wait until handlers have had this many more effects."""
        wanted = self.stage.ledger.effects(self.name) + more
        wait_until(lambda: self.stage.ledger.effects(self.name) >= wanted, deadline_s, f"{wanted} effects")

    def wait_for_sales(self, more: int) -> None:
        """Wait until this many more sales are committed."""
        wanted = self.stage.ledger.sales(self.name) + more
        wait_until(lambda: self.stage.ledger.sales(self.name) >= wanted, 60, f"{wanted} sales")

    def for_a_while(self, upto: timedelta) -> None:
        """Sleep for a random time, so that the fault comes at a random point of the other processes' work."""
        time.sleep(self.random.uniform(0, upto.total_seconds()))


Step = Callable[[Run], None]

MOMENT = timedelta(seconds=0.3)
OUTAGE = timedelta(seconds=1)


def times(number: int, *steps: Step) -> tuple[Step, ...]:
    """Repeat steps."""
    return steps * number


def work(run: Run) -> None:
    """Wait for some effects without a fault."""
    run.wait_for_effects(20)
