"""Measuring two ways of doing one thing in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """What one way took for each of its units, in µs: wall time, and CPU time of this process."""

    wall_us: float
    cpu_us: float


def once(do: Callable[[], object], units: int) -> Figure:
    """Measure one go."""
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    return Figure((time.perf_counter() - wall) / units * 1e6, (time.process_time() - cpu) / units * 1e6)


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, units: int, rounds: int, before: Callable[[], object]
) -> dict[str, Figure]:
    """Run each way once a round, after `before`, and return the medians."""
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for _round in range(rounds + 1):
        for name, way in ways.items():
            before()
            figures[name].append(once(way, units))
    # The first round warms up.
    return {
        name: Figure(median(one.wall_us for one in found[1:]), median(one.cpu_us for one in found[1:]))
        for name, found in figures.items()
    }


def print_table(title: str, figures: Mapping[str, Figure], *, floor: str) -> None:
    """Print the figures with their ratios to the floor."""
    print(
        f"\n{title}\n\n| | wall µs | CPU µs | wall : floor | CPU : floor |\n| --- | --- | --- | --- | --- |"
    )
    base = figures[floor]
    for name, one in figures.items():
        ratios = f"{one.wall_us / base.wall_us:.2f} | {one.cpu_us / base.cpu_us:.2f}"
        print(f"| {name} | {one.wall_us:.1f} | {one.cpu_us:.1f} | {ratios} |")
