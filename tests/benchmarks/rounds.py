"""Run the ways of a benchmark in turn, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.benchmark import Benchmark, Scale, Way
from tests.benchmarks.drivers import ANSWER_TIMEOUT_S, Driver, DriverError
from tests.benchmarks.environments import EnvironmentMissing
from tests.benchmarks.figures import Figures, Result

# A way that was asked may take at least so long, however late it is.
LEAST_TIMEOUT_S = 120.0
# Tens of millions of rows are written meanwhile.
PREPARE_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Args:
        deadline: on the monotonic clock; rounds that would begin later are left out.
        start: starts the driver of a way, in an environment of its own if it is a peer's.
        progress: called with a text after each step.
        one_step: called after each step.
    """

    rounds: int
    scale: Scale
    deadline: float
    start: Callable[[Way, Benchmark], Driver]
    step: Callable[[str], None]


def run(benchmark: Benchmark, plan: Plan) -> Result:
    """Measure all ways of a benchmark; a way that fails is left out of the rounds that follow."""
    figures = {way.name: Figures() for way in benchmark.ways}
    with ExitStack() as stack:
        drivers = _started(benchmark, plan, figures, stack)
        done = 0
        for number in range(plan.rounds):
            if time.monotonic() > plan.deadline and done:
                break
            _round(number, benchmark, plan, drivers, figures)
            done += 1
    return Result(benchmark, figures, done)


def _started(
    benchmark: Benchmark, plan: Plan, figures: Mapping[str, Figures], stack: ExitStack
) -> dict[str, Driver]:
    """Start each way and let it warm up, with a round of the smallest scale that nobody counts."""
    drivers: dict[str, Driver] = {}
    shared: dict[tuple[str, str], Driver] = {}
    for way in benchmark.ways:
        try:
            if (way.module, way.database) not in shared:
                driver = stack.enter_context(plan.start(way, benchmark))
                driver.start()
                shared[way.module, way.database] = driver
            drivers[way.name] = shared[way.module, way.database]
            figures[way.name].versions = drivers[way.name].versions
            if way.prepare:
                drivers[way.name].ask(timeout_s=PREPARE_TIMEOUT_S, **way.prepare)
            _ask(drivers[way.name], way, benchmark, "small", plan)
        except (DriverError, EnvironmentMissing) as problem:
            figures[way.name].failure = str(problem)
        plan.step(f"{benchmark.key}: {way.name}, warming up")
    return drivers


def _round(
    number: int,
    benchmark: Benchmark,
    plan: Plan,
    drivers: Mapping[str, Driver],
    figures: Mapping[str, Figures],
) -> None:
    turns = benchmark.turns_of(plan.scale)
    for turn in range(turns):
        # Each begins with another way, so that none always comes after the same one.
        first = (number * turns + turn) % len(benchmark.ways)
        for way in (*benchmark.ways[first:], *benchmark.ways[:first]):
            found = figures[way.name]
            if not found.failure:
                try:
                    found.answers.append(_ask(drivers[way.name], way, benchmark, plan.scale, plan))
                except DriverError as problem:
                    found.failure = str(problem)
            if turn == turns - 1:
                plan.step(f"{benchmark.key}: {way.name}, round {number + 1} of {plan.rounds}")


def _ask(driver: Driver, way: Way, benchmark: Benchmark, scale: Scale, plan: Plan) -> dict[str, object]:
    events = math.ceil(benchmark.events[scale] * way.part / benchmark.turns_of(scale))
    if way.task == "end_to_end_batched":
        # Whole batches, for the handler that takes them.
        events = max(500, events // 500 * 500)
    left_s = max(plan.deadline - time.monotonic(), LEAST_TIMEOUT_S)
    return driver.ask(way.task, min(left_s, ANSWER_TIMEOUT_S), **{benchmark.count: events}, **way.arguments)
