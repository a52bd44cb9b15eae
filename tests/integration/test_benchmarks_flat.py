"""The benchmarks of a flat cost measure the right databases, and rounds are divided into turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from tests.benchmarks import report
from tests.benchmarks.__main__ import chosen, parse
from tests.benchmarks.benchmark import Benchmark, Scale, Way, ours
from tests.benchmarks.catalogue import catalogue
from tests.benchmarks.figures import Figures, Result
from tests.benchmarks.rounds import Plan, run
from tests.benchmarks.surroundings import Surroundings


def measured(
    benchmark: Benchmark, start: Any, rounds: int = 1, events: int = 3, scale: Scale = "small"
) -> dict[str, Figures]:
    plan = Plan(
        rounds=rounds,
        scale=scale,
        deadline=time.monotonic() + 60,
        start=start,
        step=lambda text: None,
    )
    figures = run(replace(benchmark, events={"small": events, "full": events}), plan).figures
    assert [one.failure for one in figures.values()] == [""] * len(figures)
    return figures


def benchmark_named(key: str, retained: int = 50) -> Benchmark:
    [found] = [one for one in catalogue(retained) if one.key == key]
    return found


def query(surroundings: Surroundings, database: str, sql: str, *values: Any) -> list[Any]:
    with psycopg.connect(surroundings.database_url, dbname=database) as connection:
        return connection.execute(sql, values).fetchall()


@pytest.mark.postgres
@pytest.mark.redis
def test_retained_rows_are_in_one_of_two_databases(surroundings: Surroundings) -> None:
    figures = measured(benchmark_named("retained"), surroundings.start)
    assert all(one.wall_us > 0 and one.cpu_us > 0 for one in figures.values())
    count = (
        "SELECT state, count(*) FROM outbox_delivery JOIN outbox_event e ON e.id = event_id GROUP BY state"
    )
    empty, full = (query(surroundings, name, count) for name in surroundings.databases)
    assert empty == [("succeeded", 3)]
    # The warm-up and the round.
    assert full == [("succeeded", 50 + 3 + 3)]


@pytest.mark.postgres
@pytest.mark.redis
def test_a_transaction_stays_open_through_all_rounds(surroundings: Surroundings) -> None:
    benchmark = benchmark_named("pinned")
    oldest = (
        "SELECT backend_xmin::text FROM pg_stat_activity"
        " WHERE datname = %s AND state = 'idle in transaction' AND backend_xmin IS NOT NULL"
    )
    with surroundings.start(benchmark.ways[1], benchmark) as driver:
        driver.start()
        driver.ask(**benchmark.ways[1].prepare)
        [name] = surroundings.databases
        before = query(surroundings, "postgres", oldest, name)
        for _round in range(2):
            driver.ask("relay_on_kept", events=3)
        assert query(surroundings, "postgres", oldest, name) == before
        assert len(before) == 1


@pytest.mark.postgres
@pytest.mark.redis
def test_publishers_commit_with_notify_and_without_it(surroundings: Surroundings) -> None:
    benchmark = benchmark_named("notify")
    few = tuple(replace(way, arguments=way.arguments | {"publishers": 2}) for way in benchmark.ways)
    figures = measured(replace(benchmark, ways=few), surroundings.start, events=1)
    assert all(one.wall_us > 0 and one.cpu_us > 0 for one in figures.values())
    [name] = surroundings.databases
    states = query(surroundings, name, "SELECT state, count(*) FROM outbox_delivery GROUP BY state")
    # All events were relayed and settled: those of the warm-up, and the first one of each publisher too.
    [(state, published)] = states
    assert state == "succeeded"
    assert published > sum(answer["events"] for one in figures.values() for answer in one.answers) + 2


@pytest.mark.postgres
@pytest.mark.redis
def test_a_latency_has_the_cpu_time_of_all_processes(surroundings: Surroundings) -> None:
    benchmark = replace(benchmark_named("latency-redis"), ways=(ours("latency"),))
    [figures] = measured(benchmark, surroundings.start).values()
    assert len(figures.samples_ms) == 3
    assert figures.cpu_us > 0 or math.isnan(figures.cpu_us)  # without /proc
    text = report.page([Result(benchmark, {"this package": figures}, 1)], [])
    assert f" ms | 3 samples | {report._number(figures.cpu_us)} |" in text


@dataclass
class Drivers:
    """The requests to drivers, with the number of each driver."""

    asked: list[tuple[int, str, Any]] = field(default_factory=list)
    started: int = 0

    @contextmanager
    def start(self, way: Way, benchmark: Benchmark) -> Iterator[Any]:
        self.started += 1
        yield Driver(self.started, self.asked)


@dataclass
class Driver:
    number: int
    asked: list[tuple[int, str, Any]]
    versions: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        pass

    def ask(self, task: str, timeout_s: float = 0, **arguments: Any) -> dict[str, Any]:
        self.asked.append((self.number, task, arguments))
        return {"events": 1, "wall_s": 1.0, "cpu_s": 1.0}


def test_each_turn_of_a_round_begins_with_another_way() -> None:
    drivers = Drivers()
    benchmark = Benchmark(
        key="x", title="X", events={"small": 4, "full": 4}, turns=3, ways=(ours("a", "a"), ours("b", "b"))
    )
    figures = measured(benchmark, drivers.start, rounds=2, scale="full")
    assert drivers.started == 1
    assert [task for _driver, task, _arguments in drivers.asked] == list("ab" + "abbaab" + "baabba")
    assert len(figures["a"].answers) == 6


def test_a_small_round_has_one_turn() -> None:
    drivers = Drivers()
    benchmark = Benchmark(
        key="x", title="X", events={"small": 4, "full": 4}, turns=3, ways=(ours("a", "a"), ours("b", "b"))
    )
    measured(benchmark, drivers.start)
    assert [(task, arguments["events"]) for _driver, task, arguments in drivers.asked] == [
        ("a", 3),
        ("b", 3),
        ("a", 3),
        ("b", 3),
    ]


def test_a_way_with_a_database_is_prepared_once_before_its_rounds() -> None:
    drivers = Drivers()
    measured(benchmark_named("retained", 7), drivers.start, rounds=2)
    assert drivers.started == 2
    assert [arguments for _driver, task, arguments in drivers.asked if task == "retain"] == [{"rows": 7}]
    assert {driver for driver, task, _arguments in drivers.asked if task == "relay_on_kept"} == {2}
    # Before the first measurement in that database.
    assert next(task for driver, task, _arguments in drivers.asked if driver == 2) == "retain"


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ((), "10,000,000"),
        (("--scale", "small"), "1,000"),
        (("--retained", "20000"), "20,000"),
    ],
)
def test_the_title_has_the_number_of_retained_rows(arguments: tuple[str, ...], rows: str) -> None:
    [benchmark] = chosen(parse(["--only", "retained", *arguments]))
    assert f"beside {rows} retained rows" in benchmark.title


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "nothing"])
    assert "publish-many" in capsys.readouterr().err
