"""A FastStream application on an outbox table, with a relay to Redis: the module of its processes."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import uvloop
from faststream import FastStream
from faststream.redis import RedisBroker
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import URL, MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks import site
from tests.benchmarks.processes import Tally

metadata = MetaData()
table = make_outbox_table(metadata, table_name="outbox")
_at = site.database()
# The package opens its LISTEN connection by the URL alone. The folder of a socket is not a valid host in it.
_url = URL.create(
    "postgresql+asyncpg",
    username=_at["USER"] or None,
    password=_at["PASSWORD"] or None,
    database=_at["NAME"],
    query={part.lower(): _at[part] for part in ("HOST", "PORT") if _at[part]},
)
engine = create_async_engine(_url, pool_size=20)
broker = OutboxBroker(engine, outbox_table=table, log_level=logging.DEBUG, apply_types=False)
tally = Tally()

# Rows are fetched and settled in batches; eight rows are handled at once.
SUBSCRIBER: dict[str, Any] = {
    "max_workers": 8,
    "fetch_batch_size": 500,
    "terminal_flush_batch_size": 100,
    "min_fetch_interval": 0.01,
    "max_fetch_interval": 1.0,
}


def work() -> None:
    """Handle events in place."""

    @broker.subscriber("single", **SUBSCRIBER)
    async def single(body: dict[str, Any]) -> None:
        tally.hit()


def relay() -> FastStream:
    """Relay events to a Redis list."""
    redis = RedisBroker(site.BROKER_URL)
    publisher = redis.publisher(list=f"{site.PREFIX}:faststream")

    @publisher
    @broker.subscriber("relayed", **SUBSCRIBER)
    async def relayed(body: dict[str, Any]) -> dict[str, Any]:
        return body

    return FastStream(broker, on_startup=[redis.connect])


def main(role: str) -> None:
    """Run a worker or a relay until a signal comes."""
    if role == "worker":
        work()
        app = FastStream(broker)
    else:
        app = relay()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.run(log_level=logging.WARNING))


if __name__ == "__main__":
    main(sys.argv[1])
