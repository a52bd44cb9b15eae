"""Run the ways of a benchmark in turn, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from .benchmark import Benchmark, Scale, Way
from .drivers import ANSWER_TIMEOUT_S, Driver, DriverError
from .environments import EnvironmentMissing
from .figures import Figures, Result

# The shortest timeout of a task, even after the deadline of the run.
LEAST_TIMEOUT_S = 120.0
# Enough time to write tens of millions of rows.
PREPARE_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The amount of work, and how to start it.

    Args:
        deadline: on the monotonic clock; later rounds are omitted, except the first round of a benchmark.
        start: starts the driver of a way, in a virtual environment of its own for a peer.
        step: called with a text after each step.
    """

    rounds: int
    scale: Scale
    deadline: float
    start: Callable[[Way, Benchmark], Driver]
    step: Callable[[str], None]


def run(benchmark: Benchmark, plan: Plan) -> Result:
    """Measure all ways of a benchmark; a way that fails is omitted from later rounds."""
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
    """Start each way and warm it up with an uncounted round of the small scale."""
    drivers: dict[str, Driver] = {}
    shared: dict[tuple[str, ...], Driver] = {}
    for way in benchmark.ways:
        process = (way.module, way.database, way.broker_class)
        try:
            if process not in shared:
                driver = stack.enter_context(plan.start(way, benchmark))
                driver.start()
                shared[process] = driver
            drivers[way.name] = shared[process]
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
        # Each turn begins with another way, so that the order of the ways varies.
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
        # Whole batches, for the batch handler.
        events = max(500, events // 500 * 500)
    left_s = max(plan.deadline - time.monotonic(), LEAST_TIMEOUT_S)
    return driver.ask(way.task, min(left_s, ANSWER_TIMEOUT_S), **{benchmark.count: events}, **way.arguments)
