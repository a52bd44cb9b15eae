"""The benchmarks run, and report failed measurements."""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg
import pytest

from tests.benchmarks import report
from tests.benchmarks.bars import BARS, EVERY_PEER, ONE_SECOND
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
        ours("unknown_task", "an unknown task"),
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
def test_the_smallest_benchmark_measures_its_ways_and_reports_failed_ones(
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
    by_hand, by_us, unknown, by_peer = result.figures.values()
    for measured in (by_hand, by_us):
        assert measured.failure == ""
        assert measured.wall_us > 0
        assert measured.cpu_us > 0
        assert measured.versions["psycopg"] == psycopg.__version__
    assert "has no task 'unknown_task'" in unknown.failure
    assert "--no-peers" in by_peer.failure
    text = report.page([result], ["a machine"])
    assert "| **this package, publish_many()** | " in text
    assert "- Publish many, procrastinate: `omitted by --no-peers`\n" in text


def test_every_bar_names_ways_that_are_measured() -> None:
    ways = {one.key: {way.name for way in one.ways} for one in catalogue()}
    for bar in BARS:
        assert {bar.way, bar.against} - {EVERY_PEER, ONE_SECOND} <= ways[bar.benchmark]


def test_a_missed_bar_is_marked_on_the_page() -> None:
    benchmark = replace(SMALLEST, ways=SMALLEST.ways[:2])
    names = [way.name for way in benchmark.ways]
    for ours_took_s, is_met in ((1.9, "yes"), (2.1, "no")):
        figures = dict(zip(names, (answered(1.0, 0.5), answered(ours_took_s, 0.5)), strict=True))
        assert f"| {is_met} |\n" in report.page([Result(benchmark, figures, 1)], [])


def test_a_bar_against_a_failed_way_is_not_measured() -> None:
    figures = dict(
        zip([way.name for way in SMALLEST.ways], (Figures(failure="x"), *[answered(1, 1)] * 3), strict=True)
    )
    assert any(line.endswith("not measured") for line in report.bar_results([Result(SMALLEST, figures, 1)]))


def test_every_peer_means_the_best_peer() -> None:
    [publish] = [one for one in catalogue() if one.key == "publish"]
    figures = {way.name: answered(1, 3 if way.kind == "peer" else 2) for way in publish.ways}
    figures["procrastinate"] = answered(1, 1)
    [bar] = [one for one in BARS if one.against == EVERY_PEER]
    assert Result(publish, figures, 1).ratio(bar) == 2


def test_every_peer_is_not_measured_if_one_peer_is_not() -> None:
    [publish] = [one for one in catalogue() if one.key == "publish"]
    figures = {way.name: answered(1, 2) for way in publish.ways}
    figures["procrastinate"] = Figures(failure="omitted by --no-peers")
    assert "publish: this package:  (CPU at most 1 of every peer): not measured" in report.bar_results(
        [Result(publish, figures, 1)]
    )


def test_the_added_time_is_the_difference() -> None:
    counted = {"bare": 0, "full": 0}

    def bare(count: int) -> None:
        counted["bare"] += count

    def full(count: int) -> None:
        counted["full"] += count
        burn(0.002)

    answer = added(bare, full, events=40)
    # One uncounted portion of each comes first.
    assert counted == {"bare": 50, "full": 50}
    assert answer["events"] == 40
    assert answer["cpu_s"] == pytest.approx(4 * 0.002, rel=0.5)


def test_the_added_time_ignores_the_first_portion_and_outliers() -> None:
    took_s = iter([0.1, 0.002, 0.002, 0.1, 0.002, 0.002])
    answer = added(lambda count: None, lambda count: burn(next(took_s)), events=50)
    assert answer["cpu_s"] == pytest.approx(5 * 0.002, rel=0.5)


def test_percentiles_are_interpolated_between_samples() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([float(n) for n in range(101)], 99) == 99.0
