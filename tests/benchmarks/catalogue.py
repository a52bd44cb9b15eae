"""The benchmarks, the ways to compare in each, and the number of events of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .benchmark import WAYS, Benchmark, Broker, Peer, Scale, Way, by_hand, floor, ours, plain

PEERS = "tests.benchmarks.peers"
# Finished rows, of events and of deliveries.
RETAINED: Mapping[Scale, int] = {"small": 1000, "full": 10_000_000}


def peers(task: str, **parts: float) -> tuple[Way, ...]:
    """Return the ways of peers, by module name, with each peer's part of the events."""
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


# Ranges, not pins: each peer is compared in its current version, which the page names.
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

# Each peer has all events.
_ALL_PEERS = dict.fromkeys(INSTALLED, 1.0)

ALONE = "actor.send in on_commit"
BY_HAND = "by hand: LISTEN, claim, send, block"
BROKERS: Mapping[Broker, str] = {"redis": "Redis", "rabbitmq": "RabbitMQ"}
# Events a second, and the events of a full round.
RATES = {10: 40, 40: 120, 200: 400}


def _idle_latency(broker: Broker, **parts: float) -> Benchmark:
    return Benchmark(
        key=f"latency-{broker}",
        title=f"Idle latency, commit to handler, {BROKERS[broker]}",
        broker=broker,
        count="samples",
        events={"small": 3, "full": 40},
        ways=(
            by_hand("latency", BY_HAND),
            ours("latency"),
            plain("latency", ALONE),
            *peers("latency", **parts),
        ),
    )


def _latency(broker: Broker, rate: int, **parts: float) -> Benchmark:
    ways = (by_hand("latency", BY_HAND), ours("latency"), *peers("latency", **parts))
    return Benchmark(
        key=f"latency-{broker}-{rate}",
        title=f"Latency at {rate} events a second, commit to handler, {BROKERS[broker]}",
        broker=broker,
        count="samples",
        events={"small": 3, "full": RATES[rate]},
        ways=tuple(replace(way, arguments={"rate": rate}) for way in ways),
    )


def catalogue(retained: int = RETAINED["full"]) -> Sequence[Benchmark]:
    """Return all benchmarks.

    Args:
        retained: the number of rows that the benchmark of retained rows writes.
    """
    # Last, since a database of that size would slow down the others.
    return (*_SMALL, _retained(retained))


def _retained(rows: int) -> Benchmark:
    return _beside_empty(
        "retained",
        f"Relay to Redis beside {rows:,} retained rows, of events and of deliveries",
        _running("relay_on_kept", "rows retained", prepare={"task": "retain", "rows": rows}),
    )


def _beside_empty(key: str, title: str, way: Way) -> Benchmark:
    """Return a benchmark that compares a permanent relay with one on empty tables."""
    return Benchmark(key=key, title=title, events={"small": 200, "full": 50_000}, turns=5, ways=(_EMPTY, way))


def _running(task: str, name: str, **more: Any) -> Way:
    return Way(name=name, module=f"{WAYS}.running", kind="ours", task=task, database=name, **more)


def _publishers(name: str, **arguments: Any) -> Way:
    return Way(name=name, module=f"{WAYS}.publishers", kind="ours", task="commit", arguments=arguments)


_EMPTY = _running("relay_on_empty", "empty tables, nothing open")

_SMALL: Sequence[Benchmark] = (
    Benchmark(
        key="publish",
        title="Publish: cost of one event in a business transaction",
        events={"small": 20, "full": 2000},
        turns=20,
        ways=(
            floor("publish", "raw INSERT, psycopg's cursor"),
            floor("publish_by_django", "raw INSERT, Django's cursor"),
            ours("publish"),
            plain("publish", ALONE, "peer"),
            *peers(
                "publish",
                **_ALL_PEERS,
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
        # Enough events to make the start of a relay negligible.
        events={"small": 400, "full": 80_000},
        turns=2,
        ways=(
            floor("drain", "raw claim, variadic write, update, 500 each"),
            ours("drain"),
            plain("drain", "actor.send, one by one, no table", "peer", part=0.05),
            *peers(
                "drain", django_celery_outbox=0.025, faststream_outbox=0.025, django_reliable_outbox=0.025
            ),
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
        # Enough events to make the start and the end of a run negligible.
        events={"small": 100, "full": 20_000},
        ways=(
            plain("end_to_end", "actor.send, outbox.brokers.RedisBroker"),
            plain("end_to_end", "actor.send, Dramatiq's RedisBroker", broker_class="dramatiq"),
            ours("end_to_end"),
            ours("end_to_end", "this package, Dramatiq's RedisBroker", broker_class="dramatiq"),
            ours("end_to_end_batched", "this package, batch_size=500", part=8),
            *peers(
                "end_to_end",
                procrastinate=0.1,
                django_celery_outbox=0.1,
                faststream_outbox=0.5,
                django_tasks_db=0.05,
                django_reliable_outbox=0.1,
            ),
        ),
    ),
    Benchmark(
        key="end-to-end-rabbitmq",
        title="End to end, one worker process of 8 threads, RabbitMQ",
        broker="rabbitmq",
        events={"small": 100, "full": 10_000},
        ways=(plain("end_to_end", "actor.send"), ours("end_to_end")),
    ),
    Benchmark(
        key="slow-handler",
        title="End to end, handlers of 100 ms, one worker process of 8 threads, Redis",
        events={"small": 8, "full": 400},
        ways=(
            plain("end_to_end", "actor.send", arguments={"pause_s": 0.1}),
            ours("end_to_end", arguments={"pause_s": 0.1}),
        ),
    ),
    _idle_latency("rabbitmq"),
    _idle_latency(
        "redis",
        **_ALL_PEERS,
    ),
    *(_latency("rabbitmq", rate) for rate in RATES),
    _latency("redis", 10),
    _latency(
        "redis",
        40,
        **_ALL_PEERS,
    ),
    _latency("redis", 200),
    Benchmark(
        key="recovery",
        title="`kill -9` of a worker that runs 8 events, until a new worker has run them; Redis, "
        "`heartbeat_timeout` of 5 s",
        count="samples",
        events={"small": 1, "full": 1},
        ways=(
            # Without Dramatiq's own broker: an idle worker of it may take hours to give the messages back.
            plain("recovery", "actor.send, outbox.brokers.RedisBroker"),
            ours("recovery"),
        ),
    ),
    Benchmark(
        key="relays",
        title="Two relay processes sharing a backlog, Redis",
        events={"small": 200, "full": 20_000},
        ways=(
            ours("relays", "one relay", arguments={"count": 1}),
            ours("relays", "two relays", arguments={"count": 2}),
        ),
    ),
    Benchmark(
        key="notify",
        title="100 publishers that commit as fast as they can, while a relay listens",
        events={"small": 1, "full": 10},
        count="seconds",
        turns=10,
        ways=(
            _publishers("NOTIFY off", publishers=100, notify=False),
            _publishers("NOTIFY on", publishers=100, notify=True),
        ),
    ),
    _beside_empty(
        "pinned",
        "Relay to Redis while a transaction is open all the time",
        _running("relay_on_kept", "dead rows of all rounds kept", prepare={"task": "pin"}),
    ),
)
