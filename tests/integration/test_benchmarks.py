"""The benchmarks run, and say what they could not measure."""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg
import pytest

from tests.benchmarks import report
from tests.benchmarks.bars import BARS, EVERY_PEER
from tests.benchmarks.benchmark import Benchmark, floor, ours
from tests.benchmarks.catalogue import catalogue, peers
from tests.benchmarks.figures import Figures, Result, percentile
from tests.benchmarks.protocol import added
from tests.benchmarks.rounds import Plan, run
from tests.benchmarks.surroundings import Surroundings

SMALLEST = Benchmark(
    key="publish-many",
    title="Publish many",
    events={"small": 5, "full": 5},
    ways=(
        floor("publish_many", "raw COPY of one row an event"),
        ours("publish_many", "this package, publish_many()"),
        ours("fly", "what nobody can do"),
        *peers("publish_many", procrastinate=1),
    ),
)


def answered(wall_s: float, cpu_s: float) -> Figures:
    return Figures(answers=[{"events": 10, "wall_s": wall_s, "cpu_s": cpu_s}])


def burn(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


@pytest.mark.postgres
@pytest.mark.redis
def test_the_smallest_benchmark_measures_what_it_can_and_says_what_it_cannot(
    surroundings: Surroundings,
) -> None:
    plan = Plan(
        rounds=1,
        scale="small",
        deadline=time.monotonic() + 60,
        start=surroundings.start,
        step=lambda text: None,
    )
    result = run(SMALLEST, plan)
    by_hand, by_us, by_nobody, by_peer = result.figures.values()
    for measured in (by_hand, by_us):
        assert measured.failure == ""
        assert measured.wall_us > 0
        assert measured.cpu_us > 0
        assert measured.versions["psycopg"] == psycopg.__version__
    assert "has no 'fly'" in by_nobody.failure
    assert "--no-peers" in by_peer.failure
    text = report.page([result], ["a machine"])
    assert "| **this package, publish_many()** | " in text
    assert "- Publish many, procrastinate: `left out by --no-peers`\n" in text


def test_every_bar_is_about_ways_that_are_measured() -> None:
    ways = {one.key: {way.name for way in one.ways} for one in catalogue()}
    for bar in BARS:
        assert {bar.way, bar.against} - {EVERY_PEER} <= ways[bar.benchmark]


def test_a_bar_that_is_missed_says_so() -> None:
    benchmark = replace(SMALLEST, ways=SMALLEST.ways[:2])
    names = [way.name for way in benchmark.ways]
    for ours_took_s, verdict in ((1.9, "yes"), (2.1, "no")):
        figures = dict(zip(names, (answered(1.0, 0.5), answered(ours_took_s, 0.5)), strict=True))
        assert f"| {verdict} |\n" in report.page([Result(benchmark, figures, 1)], [])


def test_a_bar_against_something_that_was_not_measured_is_not_met() -> None:
    figures = dict(
        zip([way.name for way in SMALLEST.ways], (Figures(failure="x"), *[answered(1, 1)] * 3), strict=True)
    )
    assert any(line.endswith("not measured") for line in report.verdicts([Result(SMALLEST, figures, 1)]))


def test_every_peer_means_the_best_of_them() -> None:
    [publish] = [one for one in catalogue() if one.key == "publish"]
    figures = {way.name: answered(1, 3 if way.kind == "peer" else 2) for way in publish.ways}
    figures["procrastinate"] = answered(1, 1)
    [bar] = [one for one in BARS if one.against == EVERY_PEER]
    assert Result(publish, figures, 1).ratio(bar) == 2


def test_what_is_added_is_the_difference() -> None:
    counted = {"bare": 0, "full": 0}

    def bare(count: int) -> None:
        counted["bare"] += count

    def full(count: int) -> None:
        counted["full"] += count
        burn(0.002)

    answer = added(bare, full, events=40)
    # One portion of each before, which nobody counts.
    assert counted == {"bare": 50, "full": 50}
    assert answer["events"] == 40
    assert answer["cpu_s"] == pytest.approx(4 * 0.002, rel=0.5)


def test_neither_the_first_portion_nor_an_outlier_counts_for_what_is_added() -> None:
    took_s = iter([0.1, 0.002, 0.002, 0.1, 0.002, 0.002])
    answer = added(lambda count: None, lambda count: burn(next(took_s)), events=50)
    assert answer["cpu_s"] == pytest.approx(5 * 0.002, rel=0.5)


def test_the_percentiles_are_those_of_the_samples() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([float(n) for n in range(101)], 99) == 99.0
