"""The benchmarks of what keeps cost flat do what they say, and rounds are shared in turns."""

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


def named(key: str, retained: int = 50) -> Benchmark:
    [found] = [one for one in catalogue(retained) if one.key == key]
    return found


def ask(surroundings: Surroundings, database: str, question: str, *values: Any) -> list[Any]:
    with psycopg.connect(surroundings.database_url, dbname=database) as connection:
        return connection.execute(question, values).fetchall()


@pytest.mark.postgres
@pytest.mark.redis
def test_retained_rows_are_in_one_database_and_an_empty_one_is_beside_it(surroundings: Surroundings) -> None:
    figures = measured(named("retained"), surroundings.start)
    assert all(one.wall_us > 0 and one.cpu_us > 0 for one in figures.values())
    count = (
        "SELECT status, count(*) FROM outbox_delivery JOIN outbox_event e ON e.id = event_id GROUP BY status"
    )
    empty, full = (ask(surroundings, name, count) for name in surroundings.databases)
    assert empty == [("succeeded", 3)]
    # What warms up, and the round.
    assert full == [("succeeded", 50 + 3 + 3)]


@pytest.mark.postgres
@pytest.mark.redis
def test_a_transaction_stays_open_through_all_rounds(surroundings: Surroundings) -> None:
    benchmark = named("pinned")
    oldest = (
        "SELECT backend_xmin::text FROM pg_stat_activity"
        " WHERE datname = %s AND state = 'idle in transaction' AND backend_xmin IS NOT NULL"
    )
    with surroundings.start(benchmark.ways[1], benchmark) as driver:
        driver.start()
        driver.ask(**benchmark.ways[1].prepare)
        [name] = surroundings.databases
        before = ask(surroundings, "postgres", oldest, name)
        for _round in range(2):
            driver.ask("relay_on_kept", events=3)
        assert ask(surroundings, "postgres", oldest, name) == before
        assert len(before) == 1


@pytest.mark.postgres
@pytest.mark.redis
def test_publishers_commit_with_and_without_notify(surroundings: Surroundings) -> None:
    benchmark = named("notify")
    few = tuple(replace(way, arguments=way.arguments | {"publishers": 2}) for way in benchmark.ways)
    figures = measured(replace(benchmark, ways=few), surroundings.start, events=1)
    assert all(one.wall_us > 0 and one.cpu_us > 0 for one in figures.values())
    [name] = surroundings.databases
    states = ask(surroundings, name, "SELECT status, count(*) FROM outbox_delivery GROUP BY status")
    # Everything was relayed and settled; besides what warms up there is the first one of each publisher.
    [(status, published)] = states
    assert status == "succeeded"
    assert published > sum(answer["events"] for one in figures.values() for answer in one.answers) + 2


@pytest.mark.postgres
@pytest.mark.redis
def test_a_latency_comes_with_the_cpu_time_of_all_processes(surroundings: Surroundings) -> None:
    benchmark = replace(named("latency-redis"), ways=(ours("latency"),))
    [figures] = measured(benchmark, surroundings.start).values()
    assert len(figures.samples_ms) == 3
    assert figures.cpu_us > 0 or math.isnan(figures.cpu_us)  # without /proc
    text = report.page([Result(benchmark, {"this package": figures}, 1)], [])
    assert f" ms | 3 samples | {report._number(figures.cpu_us)} |" in text


@dataclass
class Drivers:
    """What drivers were asked, by the number of the driver."""

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


def test_ways_share_a_round_in_turns_and_each_turn_begins_with_another() -> None:
    drivers = Drivers()
    benchmark = Benchmark(
        key="x", title="X", events={"small": 4, "full": 4}, turns=3, ways=(ours("a", "a"), ours("b", "b"))
    )
    figures = measured(benchmark, drivers.start, rounds=2, scale="full")
    assert drivers.started == 1
    assert [task for _driver, task, _arguments in drivers.asked] == list("ab" + "abbaab" + "baabba")
    assert len(figures["a"].answers) == 6


def test_a_small_round_is_not_shared_in_turns() -> None:
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


def test_a_way_is_prepared_once_and_has_its_own_database() -> None:
    drivers = Drivers()
    measured(named("retained", 7), drivers.start, rounds=2)
    assert drivers.started == 2
    assert [arguments for _driver, task, arguments in drivers.asked if task == "retain"] == [{"rows": 7}]
    assert {driver for driver, task, _arguments in drivers.asked if task == "relay_on_kept"} == {2}
    # Before all that is measured there.
    assert next(task for driver, task, _arguments in drivers.asked if driver == 2) == "retain"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "10,000,000"),
        (("--scale", "small"), "1,000"),
        (("--retained", "20000"), "20,000"),
    ],
)
def test_the_number_of_retained_rows_is_an_option_and_in_the_title(
    arguments: tuple[str, ...], said: str
) -> None:
    [benchmark] = chosen(parse(["--only", "retained", *arguments]))
    assert f"beside {said} retained rows" in benchmark.title


def test_a_benchmark_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "nothing"])
    assert "publish-many" in capsys.readouterr().err
