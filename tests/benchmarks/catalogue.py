"""What is measured: the benchmarks, the ways of doing each, and how many events a round has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "floor", "peer"]
Broker = Literal["redis", "rabbitmq"]
Scale = Literal["small", "full"]

WAYS = "tests.benchmarks.ways"
PEERS = "tests.benchmarks.peers"


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
    """

    name: str
    module: str
    kind: Kind
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0
    peer: Peer | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Ways to compare, measured in turn."""

    key: str
    title: str
    events: Mapping[Scale, int]
    ways: tuple[Way, ...]
    broker: Broker = "redis"
    count: str = "events"


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


def peers(task: str, **parts: float) -> tuple[Way, ...]:
    """Return the ways of peers, by the names of their modules, with their parts of the events."""
    return tuple(
        Way(
            name=name.replace("_", "-"),
            module=f"{PEERS}.{name}",
            kind="peer",
            task=task,
            part=part,
            peer=INSTALLED[name],
        )
        for name, part in parts.items()
    )


# Ranges, not pins: each is compared as it is today, and the page says which version that was.
INSTALLED: Mapping[str, Peer] = {
    "procrastinate": Peer(
        requirements=("procrastinate[django]>=3", "Django>=5.2,<6", "psycopg[binary]>=3.2")
    ),
    "django_celery_outbox": Peer(
        requirements=(
            "django-celery-outbox>=0.4",
            "celery[redis]>=5.4",
            "hiredis>=3",
            "Django>=5.2,<6",
            "psycopg[binary]>=3.2",
        )
    ),
    "faststream_outbox": Peer(
        requirements=(
            "faststream-outbox[asyncpg]>=0.19",
            "faststream[redis]>=0.7",
            "hiredis>=3",
            "uvloop>=0.20",
        )
    ),
    "django_tasks_db": Peer(
        requirements=("django-tasks-db[compat]>=0.13", "Django>=5.2,<6", "psycopg[binary]>=3.2")
    ),
    "django_reliable_outbox": Peer(
        requirements=("django-reliable-outbox[redis]>=0.1", "hiredis>=3", "psycopg[binary]>=3.2"),
        python=(3, 12),
    ),
}

ALONE = "actor.send in on_commit"


def _latency(broker: Broker, **parts: float) -> Benchmark:
    return Benchmark(
        key=f"latency-{broker}",
        title=f"Idle latency, commit to handler, {'Redis' if broker == 'redis' else 'RabbitMQ'}",
        broker=broker,
        count="samples",
        events={"small": 3, "full": 40},
        ways=(plain("latency", ALONE), ours("latency"), *peers("latency", **parts)),
    )


CATALOGUE: Sequence[Benchmark] = (
    Benchmark(
        key="publish",
        title="Publish: what one event adds to a business transaction",
        events={"small": 20, "full": 1000},
        ways=(
            floor("publish", "raw INSERT, psycopg's cursor"),
            floor("publish_by_django", "raw INSERT, Django's cursor"),
            ours("publish"),
            plain("publish", ALONE, "peer"),
            *peers(
                "publish",
                procrastinate=1,
                django_celery_outbox=1,
                faststream_outbox=1,
                django_tasks_db=1,
                django_reliable_outbox=1,
            ),
        ),
    ),
    Benchmark(
        key="publish-many",
        title="Publish many in one transaction",
        events={"small": 200, "full": 20_000},
        ways=(
            floor("publish_many", "raw COPY of one row an event"),
            floor("publish_many_by_unnest", "raw INSERT … unnest() of one row an event"),
            ours("publish_many", "this package, publish_many()"),
            *peers("publish_many", procrastinate=0.5, faststream_outbox=0.5),
        ),
    ),
    Benchmark(
        key="relay-redis",
        title="Relay a backlog to Redis",
        events={"small": 200, "full": 20_000},
        ways=(
            floor("drain", "raw claim, variadic write, update, 500 each"),
            ours("drain"),
            plain("drain", "actor.send, one by one, no table", "peer", part=0.25),
            *peers("drain", django_celery_outbox=0.1, faststream_outbox=0.1, django_reliable_outbox=0.1),
        ),
    ),
    Benchmark(
        key="relay-rabbitmq",
        title="Relay a backlog to RabbitMQ, confirmed",
        broker="rabbitmq",
        events={"small": 200, "full": 20_000},
        ways=(floor("drain", "raw claim, pipelined confirms, update, 500 each"), ours("drain")),
    ),
    Benchmark(
        key="end-to-end",
        title="End to end, one worker process of 8 threads, Redis",
        events={"small": 100, "full": 5000},
        ways=(
            plain("end_to_end", "the same worker fed by actor.send"),
            ours("end_to_end"),
            ours("end_to_end_packed", "this package, pack=50", part=4),
            ours("end_to_end_batched", "this package, batch_size=500", part=8),
            *peers(
                "end_to_end",
                procrastinate=0.3,
                django_celery_outbox=0.3,
                faststream_outbox=1,
                django_tasks_db=0.2,
                django_reliable_outbox=0.3,
            ),
        ),
    ),
    _latency("rabbitmq"),
    _latency(
        "redis",
        procrastinate=1,
        django_celery_outbox=1,
        faststream_outbox=1,
        django_tasks_db=1,
        django_reliable_outbox=1,
    ),
    Benchmark(
        key="relays",
        title="Two relay processes sharing a backlog, Redis",
        events={"small": 200, "full": 20_000},
        ways=(
            ours("relays", "one relay", count=1),
            ours("relays", "two relays", count=2),
        ),
    ),
)
