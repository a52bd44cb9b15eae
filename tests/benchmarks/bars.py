"""The bars: what this package promises itself of each benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Measure = Literal["rate", "cpu", "p50", "p99"]

EVERY_PEER = "every peer"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A limit for the ratio of one way to another.

    Args:
        way, against: names of ways; `EVERY_PEER` takes the best of the peers.
        measure: what is divided: events a second, CPU time an event, or a percentile of the latency.
        at_least: whether the ratio must not be less than the limit; else it must not be more.
        note: what has to be known to judge a miss.
    """

    benchmark: str
    way: str
    against: str
    measure: Measure
    limit: float
    at_least: bool
    note: str = ""

    def is_met(self, ratio: float) -> bool:
        """Say whether a ratio keeps to the limit; one that is not a number does not."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        what = {"rate": "events/s", "cpu": "CPU"}.get(self.measure, self.measure)
        return f"{what} at {'least' if self.at_least else 'most'} {self.limit:g} of {self.against}"


def _at_least(benchmark: str, way: str, limit: float, against: str, note: str = "") -> Bar:
    return Bar(
        benchmark=benchmark, way=way, against=against, measure="rate", limit=limit, at_least=True, note=note
    )


def _at_most(benchmark: str, way: str, measure: Measure, limit: float, against: str) -> Bar:
    return Bar(benchmark=benchmark, way=way, against=against, measure=measure, limit=limit, at_least=False)


_OURS = "this package"
_WORKER = "the same worker fed by actor.send"
_ALONE = "actor.send in on_commit"
_EMPTY = "empty tables, nothing open"

BARS: Sequence[Bar] = (
    # Of the two floors always the lower one, which is harder to keep to.
    _at_most("publish", _OURS, "cpu", 1.5, "raw INSERT, psycopg's cursor"),
    _at_most("publish", _OURS, "cpu", 1.0, EVERY_PEER),
    _at_least("publish-many", "this package, publish_many()", 0.5, "raw COPY of one row an event"),
    _at_least("relay-redis", _OURS, 0.60, "raw claim, variadic write, update, 500 each"),
    _at_least("relay-rabbitmq", _OURS, 0.80, "raw claim, pipelined confirms, update, 500 each"),
    _at_least("end-to-end", _OURS, 0.85, _WORKER),
    _at_least("end-to-end", "this package, pack=50", 4.0, _WORKER),
    _at_least("end-to-end", "this package, batch_size=500", 10.0, _WORKER),
    _at_most("latency-rabbitmq", _OURS, "p50", 1.25, _ALONE),
    _at_most("latency-rabbitmq", _OURS, "p99", 2.0, _ALONE),
    _at_least(
        "relays",
        "two relays",
        1.6,
        "one relay",
        "two relays, PostgreSQL and Redis want four cores",
    ),
    _at_least("notify", "NOTIFY on", 0.95, "NOTIFY off"),
    _at_least("pinned", "dead rows of all rounds kept", 0.9, _EMPTY),
    _at_least("retained", "rows retained", 0.9, _EMPTY),
)
