"""faststream-outbox: an asyncio queue in a table of SQLAlchemy's, with or without a relay to a broker."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any

import uvloop
from sqlalchemy import text

from tests.benchmarks import ending, site
from tests.benchmarks.ending import Fed
from tests.benchmarks.protocol import Answer, added, measured, serve

from .faststream_outbox_app import broker, engine, metadata

PROCESS = (sys.executable, "-m", "tests.benchmarks.peers.faststream_outbox_app")
INSERT_ORDER = text("INSERT INTO bench_order (status, total, note) VALUES ('pending', 0, '') RETURNING id")

runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, always in the same loop."""
    return runner.run(work)


def publish(events: int) -> Answer:
    """Publish one event in a business transaction."""
    run(clear())
    return added(
        lambda count: run(business(count, False)), lambda count: run(business(count, True)), events=events
    )


def publish_many(events: int) -> Answer:
    """Publish many events in one transaction."""
    run(clear())
    return measured(lambda: run(write(events, "single")), events)


def drain(events: int) -> Answer:
    """Relay a backlog to the broker."""
    run(clear())
    return ending.drained(
        (*PROCESS, "relay"),
        feed=lambda count: run(write(count, "relayed")),
        events=events,
        is_drained=is_drained,
    )


def end_to_end(events: int) -> Answer:
    """Commit a backlog for an idle worker."""
    run(clear())
    return ending.end_to_end(
        (*PROCESS, "worker"),
        feed=lambda count: run(write(count, "single")),
        events=events,
        settle=lambda: ending.wait_until(is_drained),
    )


def latency(samples: int, rate: float = 0.0) -> Answer:
    """Commit one event at a time."""
    run(clear())
    return ending.latency(
        (*PROCESS, "worker"), feed=lambda count: run(write(count, "single")), samples=samples, rate=rate
    )


def is_drained() -> bool:
    """Return whether the table is empty."""
    return bool(run(execute("SELECT NOT EXISTS (SELECT 1 FROM outbox)")))


async def business(transactions: int, publishes: bool) -> None:
    """Commit business rows, one per transaction, with an event or without."""
    for _ in range(transactions):
        async with engine.begin() as connection:
            await connection.execute(INSERT_ORDER)
            if publishes:
                await broker.publish(site.PAYLOAD, queue="single", session=connection)


async def write(events: int, queue: str) -> Fed:
    """Write events in one transaction; the time begins with its commit."""
    async with engine.begin() as connection:
        if events == 1:
            await broker.publish(site.PAYLOAD, queue=queue, session=connection)
        else:
            await broker.publish_batch(*[site.PAYLOAD] * events, queue=queue, session=connection)
    return Fed(time.monotonic())


async def execute(statement: str) -> Any:
    """Run a statement and return its first value, if it has one."""
    async with engine.begin() as connection:
        result = await connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


async def clear() -> None:
    """Empty the tables."""
    await execute("TRUNCATE outbox, bench_order")


async def prepare() -> None:
    """Create the tables."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await execute(site.BUSINESS_TABLE)
    await broker.connect()


if __name__ == "__main__":
    run(prepare())
    serve(
        {
            "publish": publish,
            "publish_many": publish_many,
            "drain": drain,
            "end_to_end": end_to_end,
            "latency": latency,
        },
        packages=("faststream-outbox", "faststream", "SQLAlchemy", "asyncpg", "redis", "uvloop"),
    )
