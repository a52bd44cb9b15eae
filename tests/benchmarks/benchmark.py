"""A benchmark: ways of doing the same, which are measured in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "floor", "peer"]
Broker = Literal["redis", "rabbitmq"]
Scale = Literal["small", "full"]

WAYS = "tests.benchmarks.ways"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package to compare with, in an environment of its own."""

    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 11)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of doing what a benchmark measures.

    Args:
        module: the program that does it.
        part: of the benchmark's events, for ways that would take too long with all of them.
        peer: what has to be installed for it.
        database: ways of one module share a process and its database, unless these names differ.
        prepare: what its process is asked once before all rounds, a task and its arguments.
    """

    name: str
    module: str
    kind: Kind
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0
    peer: Peer | None = None
    database: str = ""
    prepare: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Ways to compare, measured in turn.

    Args:
        count: what the number of a round's events is called by the tasks.
        turns: in which the ways share a full round, each with a part of the events; medians are over all.
    """

    key: str
    title: str
    events: Mapping[Scale, int]
    ways: tuple[Way, ...]
    broker: Broker = "redis"
    count: str = "events"
    turns: int = 1

    def turns_of(self, scale: Scale) -> int:
        """Return the turns of a round, of a small one only one."""
        return self.turns if scale == "full" else 1


def ours(task: str, name: str = "this package", **arguments: Any) -> Way:
    """Return a way of this package."""
    part = arguments.pop("part", 1.0)
    return Way(name=name, module=f"{WAYS}.outbox", kind="ours", task=task, arguments=arguments, part=part)


def floor(task: str, name: str) -> Way:
    """Return a floor, written by hand."""
    return Way(name=name, module=f"{WAYS}.floor", kind="floor", task=task)


def plain(task: str, name: str, kind: Kind = "floor", part: float = 1.0) -> Way:
    """Return a way of Dramatiq alone."""
    return Way(name=name, module=f"{WAYS}.plain", kind=kind, task=task, part=part)
