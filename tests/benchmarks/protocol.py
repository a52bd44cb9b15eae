"""The protocol of measured processes: requests and answers are lines of JSON. It needs only Python.

A request names a task and its arguments. An answer is the task's result, with the numbers of `measured()`, or
`{"error": …}`. The first line names the tasks and the versions: `{"tasks": […], "versions": {…}}`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any

# Transactions: few enough that both sides of a difference find the machine at the same speed.
PORTION = 10

Answer = dict[str, Any]
Task = Callable[..., Answer]


def serve(tasks: Mapping[str, Task], *, packages: tuple[str, ...]) -> None:
    """Answer requests until the end of the input."""
    # Answers have a descriptor of their own, since libraries print to standard output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    python = ".".join(map(str, sys.version_info[:3]))
    versions = {"Python": python} | {name: version(name) for name in packages}
    print(json.dumps({"tasks": sorted(tasks), "versions": versions}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = tasks[request.pop("task")](**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        print(json.dumps(answer), file=answers)


class Clock:
    """The wall time and the CPU time of this process in the measured blocks."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        """Add the time of the block."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu

    def answer(self, events: int, **more: Any) -> Answer:
        """Return the answer with the measured times."""
        return {"events": events, "wall_s": self.wall_s, "cpu_s": self.cpu_s, **more}


def measured(do: Callable[[], object], events: int) -> Answer:
    """Measure one call."""
    return _clocked(lambda _events: do(), events).answer(events)


def added(bare: Callable[[int], object], full: Callable[[int], object], *, events: int) -> Answer:
    """Measure the additional time of `full` over `bare`: the median difference of alternating portions."""
    portion = min(PORTION, events)
    portions = events // portion
    # The first portions pay for connections, caches and the first pages of emptied tables.
    bare(portion)
    full(portion)
    gc.collect()
    found = []
    for number in range(portions):
        # In alternating order.
        clocks = {do: _clocked(do, portion) for do in ((bare, full), (full, bare))[number % 2]}
        found.append((clocks[bare], clocks[full]))
    return {
        "events": portions * portion,
        "wall_s": portions * median(whole.wall_s - base.wall_s for base, whole in found),
        "cpu_s": portions * median(whole.cpu_s - base.cpu_s for base, whole in found),
    }


def _clocked(do: Callable[[int], object], portion: int) -> Clock:
    clock = Clock()
    with clock.running():
        do(portion)
    return clock
