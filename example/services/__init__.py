"""Find or start the servers of the demo and the tests.

Started servers are real processes with a temporary directory each. They end with the process that started
them, even if that process is killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from .embedded_postgres import EmbeddedPostgres
from .embedded_redis import EmbeddedRedis, redis_executable
from .probes import ServiceError, ask, wait_until

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "ServiceError",
    "broker",
    "postgres",
    "rabbitmq_url",
    "redis",
    "redis_executable",
    "wait_until",
]

# The frame header of AMQP 0-9-1; a broker that speaks it answers with the method Connection.Start.
AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
AMQP_CONNECTION_START = b"\x00\x0a\x00\x0a"


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[str]:
    """Yield the URL of a PostgreSQL database: `DATABASE_URL` if set, else the URL of a new server."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    with EmbeddedPostgres(durable=durable) as server:
        yield server.url


@contextmanager
def redis() -> Iterator[str | None]:
    """Yield the URL of a Redis server: `DRAMATIQ_BROKER_URL` if it is one, else a new one, else None."""
    url = os.environ.get("DRAMATIQ_BROKER_URL", "")
    if urlsplit(url).scheme in ("redis", "rediss"):
        yield url
    elif redis_executable() is None:
        yield None
    else:
        with EmbeddedRedis() as server:
            yield server.url


@contextmanager
def broker() -> Iterator[str | None]:
    """Yield `DRAMATIQ_BROKER_URL` for any broker if set, else the result of `redis()`."""
    url = os.environ.get("DRAMATIQ_BROKER_URL")
    if url:
        yield url
        return
    with redis() as found:
        yield found


def rabbitmq_url() -> str | None:
    """Return the URL of a RabbitMQ server that answers: `RABBITMQ_URL`, else the local default, else None."""
    url = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@127.0.0.1:5672"
    parts = urlsplit(url)
    if parts.scheme != "amqp":
        return url  # encrypted: only a client can find out
    answer = ask(parts.hostname or "127.0.0.1", parts.port or 5672, AMQP_GREETING, wanted=11)
    return url if answer[7:11] == AMQP_CONNECTION_START else None
