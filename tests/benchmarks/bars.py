"""The bars: the limits that this package sets itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Measure = Literal["rate", "cpu", "p50", "p99"]

EVERY_PEER = "every peer"
ONE_SECOND = "one second"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A limit for the ratio of one way to another.

    Args:
        way, against: names of ways; `EVERY_PEER` takes the best of the peers, `ONE_SECOND` no way.
        measure: the divided figures: events a second, CPU time an event, or a percentile of the latency.
        at_least: whether the limit is a minimum; otherwise it is a maximum.
        note: a condition of the bar that explains a miss.
    """

    benchmark: str
    way: str
    against: str
    measure: Measure
    limit: float
    at_least: bool
    note: str = ""

    def is_met(self, ratio: float) -> bool:
        """Return whether a ratio meets the limit; NaN does not."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        measure = {"rate": "events/s", "cpu": "CPU"}.get(self.measure, self.measure)
        return f"{measure} at {'least' if self.at_least else 'most'} {self.limit:g} of {self.against}"


def _at_least(benchmark: str, way: str, limit: float, against: str, note: str = "") -> Bar:
    return Bar(
        benchmark=benchmark, way=way, against=against, measure="rate", limit=limit, at_least=True, note=note
    )


def _at_most(benchmark: str, way: str, measure: Measure, limit: float, against: str) -> Bar:
    return Bar(benchmark=benchmark, way=way, against=against, measure=measure, limit=limit, at_least=False)


_OURS = "this package"
_ALONE_SAME_BROKER = "actor.send, outbox.brokers.RedisBroker"
_ALONE = "actor.send, Dramatiq's RedisBroker"
_BY_HAND = "by hand: LISTEN, claim, send, block"
_EMPTY = "empty tables, nothing open"


def _latency(benchmark: str) -> tuple[Bar, Bar]:
    return (
        _at_most(benchmark, _OURS, "p50", 2.0, _BY_HAND),
        _at_most(benchmark, _OURS, "p99", 3.0, _BY_HAND),
    )


BARS: Sequence[Bar] = (
    # If there are two floors, the bar is about the lower one, which is harder to meet.
    _at_most("publish", _OURS, "cpu", 1.8, "raw INSERT, psycopg's cursor"),
    _at_most("publish", _OURS, "cpu", 1.0, EVERY_PEER),
    _at_least("publish-many", "this package, publish_many()", 0.5, "raw COPY of one row an event"),
    _at_least("relay-redis", _OURS, 0.65, "raw claim, variadic write, update, 500 each"),
    _at_least("relay-rabbitmq", _OURS, 0.80, "raw claim, pipelined confirms, update, 500 each"),
    _at_least("end-to-end", _OURS, 0.75, _ALONE_SAME_BROKER),
    _at_least("end-to-end", _OURS, 2.5, _ALONE),
    _at_least("end-to-end", _OURS, 1.0, "faststream-outbox"),
    _at_least("end-to-end", "this package, batch_size=500", 10.0, _ALONE),
    _at_least("end-to-end-rabbitmq", _OURS, 0.75, "actor.send"),
    _at_least("slow-handler", _OURS, 0.97, "actor.send"),
    *_latency("latency-redis"),
    *_latency("latency-redis-10"),
    *_latency("latency-redis-40"),
    *_latency("latency-redis-200"),
    *_latency("latency-rabbitmq"),
    *_latency("latency-rabbitmq-10"),
    *_latency("latency-rabbitmq-40"),
    *_latency("latency-rabbitmq-200"),
    # The heartbeat timeout of the benchmark, and 5 s.
    _at_most("recovery", _OURS, "p50", 10.0, ONE_SECOND),
    _at_least(
        "relays",
        "two relays",
        1.6,
        "one relay",
        "two relays, PostgreSQL and Redis need four cores",
    ),
    _at_least("notify", "NOTIFY on", 0.95, "NOTIFY off"),
    _at_least("pinned", "dead rows of all rounds kept", 0.9, _EMPTY),
    _at_least("retained", "rows retained", 0.9, _EMPTY),
)
