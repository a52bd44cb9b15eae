"""A benchmark: several ways to do the same work, measured in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "floor", "peer"]
Broker = Literal["redis", "rabbitmq"]
BrokerClass = Literal["package", "dramatiq"]
Scale = Literal["small", "full"]

WAYS = "tests.benchmarks.ways"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package to compare with, in a virtual environment of its own."""

    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 11)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do the work of a benchmark.

    Args:
        module: the program that does the work.
        part: the share of the benchmark's events, for ways that would take too long with all of them.
        broker_class: whose class of Redis broker the way uses; a difference needs a process of its own.
        peer: the package to install.
        database: a name; ways of one module share a process and its database unless these names differ.
        prepare: a task and its arguments, run once before all rounds.
    """

    name: str
    module: str
    kind: Kind
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0
    broker_class: BrokerClass = "package"
    peer: Peer | None = None
    database: str = ""
    prepare: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Ways to compare, measured in turn.

    Args:
        count: the name of the tasks' argument for the number of events.
        turns: the parts of a full round; medians are over all turns.
    """

    key: str
    title: str
    events: Mapping[Scale, int]
    ways: tuple[Way, ...]
    broker: Broker = "redis"
    count: str = "events"
    turns: int = 1

    def turns_of(self, scale: Scale) -> int:
        """Return the turns of a round; a small round has one."""
        return self.turns if scale == "full" else 1


def ours(task: str, name: str = "this package", **options: Any) -> Way:
    """Return a way of this package."""
    return Way(name=name, module=f"{WAYS}.outbox", kind="ours", task=task, **options)


def floor(task: str, name: str) -> Way:
    """Return a floor: the work written by hand."""
    return Way(name=name, module=f"{WAYS}.floor", kind="floor", task=task)


def by_hand(task: str, name: str, **options: Any) -> Way:
    """Return a way of the loop that is written by hand."""
    return Way(name=name, module=f"{WAYS}.loop", kind="floor", task=task, **options)


def plain(task: str, name: str, kind: Kind = "floor", **options: Any) -> Way:
    """Return a way of Dramatiq alone."""
    return Way(name=name, module=f"{WAYS}.plain", kind=kind, task=task, **options)
