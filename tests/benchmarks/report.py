"""The page with the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .bars import BARS, Bar
from .benchmark import Way
from .figures import Figures, Result

HEAD = """\
# Benchmarks

Written by `make bench ARGS=--write`. [Performance](../explanation/performance.md) describes the measurements
and the gain of each optimisation. The figures of another machine differ; the ratios differ less.

"""

COLUMNS = (
    "| measured | way | events/s | wall µs | least…greatest | CPU µs | ratio | bar | met |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |\n"
)

NOTES = """
- **wall µs** and **CPU µs** are times per event: the median of the rounds, or of the turns if a round is
  divided into turns. **least…greatest** are the wall times of the fastest and the slowest round or turn.
- **CPU µs** is the user and system time of all client processes (publisher, relay, worker), without the
  servers.
- The time of publishing is the additional time of a transaction that writes one business row.
- Latencies are those of all rounds together. Idle latencies are of six events a second, at random times. The
  CPU time of a latency is the total of all processes, divided by the events; it includes idle work.
- **ratio** compares a way with the way in its bar, by the measure of that bar. Without a bar it compares with
  the first row of the block, by the measure of the block's first bar, or by the median latency.

One bar is a test instead of a row: an idle relay sends at most two statements a second
([`test_an_idle_relay_sends_at_most_two_statements_a_second`](../../tests/integration/test_statement_counts.py)).
"""


def page(results: Sequence[Result], machine: Sequence[str]) -> str:
    """Return the whole page."""
    rows = "".join(row for result in results for row in _block(result))
    return (
        f"{HEAD}{_machine(machine, results)}\n{COLUMNS}{rows}{NOTES}{_versions(results)}{_failures(results)}"
    )


def bar_results(results: Iterable[Result]) -> list[str]:
    """Return one line for each bar."""
    by_key = {result.benchmark.key: result for result in results}
    lines = []
    for bar in BARS:
        result = by_key.get(bar.benchmark)
        if result is not None:
            ratio = result.ratio(bar)
            lines.append(f"{bar.benchmark}: {bar.way}: {_number(ratio)} ({bar}): {_is_met(bar, ratio)}")
    return lines


def _machine(lines: Sequence[str], results: Sequence[Result]) -> str:
    rounds = sorted({result.rounds for result in results if not result.skipped})
    number = "…".join(map(str, dict.fromkeys((rounds[0], rounds[-1])))) if rounds else "no"
    return "".join(f"- {line}\n" for line in (*lines, f"{number} interleaved rounds"))


def _block(result: Result) -> list[str]:
    title = result.benchmark.title
    if result.skipped:
        return [f"| {title} | not measured: {result.skipped} | | | | | | | |\n"]
    rows = []
    for way in result.benchmark.ways:
        bars = [bar for bar in BARS if (bar.benchmark, bar.way) == (result.benchmark.key, way.name)]
        for bar in bars or [None]:
            rows.append(_row(title, way, result, bar))
            title = ""
    return rows


def _row(title: str, way: Way, result: Result, bar: Bar | None) -> str:
    found = result.figures[way.name]
    if found.failure:
        cells = ["not measured: see below", "", "", "", "", str(bar or ""), "not measured" if bar else ""]
    else:
        ratio = result.ratio(bar or _implied(result, way))
        is_met = _is_met(bar, ratio) if bar else ""
        cells = [*_measured(found), _number(ratio), str(bar or ""), is_met]
    name = f"**{way.name}**" if way.kind == "ours" else way.name
    return f"| {title} | {name} | {' | '.join(cells)} |\n"


def _measured(found: Figures) -> list[str]:
    if found.samples_ms:
        p50, p99 = found.value("p50"), found.value("p99")
        wall = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        return ["", wall, f"{len(found.samples_ms)} samples", _number(found.cpu_us)]
    least, greatest = found.spread()
    return [
        _number(found.value("rate")),
        _number(found.wall_us),
        f"{_number(least)}…{_number(greatest)}",
        _number(found.cpu_us),
    ]


def _implied(result: Result, way: Way) -> Bar:
    """Return a bar without a limit, for the ratio of a way to the first way of its block."""
    measures = [bar.measure for bar in BARS if bar.benchmark == result.benchmark.key]
    return Bar(
        benchmark=result.benchmark.key,
        way=way.name,
        against=result.benchmark.ways[0].name,
        measure=measures[0] if measures else "rate",
        limit=0,
        at_least=True,
    )


def _is_met(bar: Bar, ratio: float) -> str:
    if math.isnan(ratio):
        return "not measured"
    if bar.is_met(ratio):
        return "yes"
    return f"no ({bar.note})" if bar.note else "no"


def _versions(results: Iterable[Result]) -> str:
    found: dict[str, dict[str, str]] = {}
    for result in results:
        for way in result.benchmark.ways:
            if versions := result.figures[way.name].versions if way.name in result.figures else {}:
                module = way.module.rpartition(".")[2].replace("_", "-")
                found["this package" if way.kind == "ours" else module] = versions
    lines = (
        f"- {name}: {', '.join(f'{package} {number}' for package, number in versions.items())}\n"
        for name, versions in found.items()
    )
    return f"\n## Versions\n\n{''.join(lines)}"


def _failures(results: Iterable[Result]) -> str:
    lines = [
        f"- {result.benchmark.title}, {name}: `{figures.failure.splitlines()[0]}`\n"
        for result in results
        for name, figures in result.figures.items()
        if figures.failure
    ]
    return f"\n## Not measured\n\n{''.join(lines)}" if lines else ""


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
