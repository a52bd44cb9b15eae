"""What every measured process speaks: a line of JSON asks, a line of JSON answers. Needs nothing but Python.

A request names a task and its arguments. An answer is what the task returned, with the numbers of
`measured()`, or `{"error": …}`. The first line of all says what runs: `{"versions": {…}}`.
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

# Transactions: short enough that both sides of a difference find the machine at the same speed.
PORTION = 10

Answer = dict[str, Any]
Task = Callable[..., Answer]


def serve(tasks: Mapping[str, Task], *, packages: tuple[str, ...]) -> None:
    """Answer requests until the end of the input."""
    # Answers go to a descriptor of their own, since libraries print what they like.
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
    """Wall time, and CPU time of this process, that went by in the blocks measured with it."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        """Count the time that the block takes."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu

    def answer(self, events: int, **more: Any) -> Answer:
        """Return what was measured."""
        return {"events": events, "wall_s": self.wall_s, "cpu_s": self.cpu_s, **more}


def measured(do: Callable[[], object], events: int) -> Answer:
    """Measure one go."""
    return _clocked(lambda _events: do(), events).answer(events)


def added(bare: Callable[[int], object], full: Callable[[int], object], *, events: int) -> Answer:
    """Measure what `full` takes beyond `bare`: the median difference between small portions, done in turn."""
    portion = min(PORTION, events)
    portions = events // portion
    # Connections, caches and the first pages of emptied tables; and no garbage of others inside.
    bare(portion)
    full(portion)
    gc.collect()
    found = []
    for number in range(portions):
        # Each comes first every other time.
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
