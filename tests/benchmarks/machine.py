"""A description of the machine and the servers."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psycopg


def describe(
    database_url: str, *, embedded: bool, redis_url: str | None, rabbitmq_url: str | None
) -> list[str]:
    """Return a line for the date, the machine, Python, the database and each broker."""
    return [
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{_cores()} cores ({_processor()}), {_memory_gib():.0f} GiB of memory, {platform.system()}",
        f"Python {platform.python_version()}",
        _postgresql(database_url, embedded),
        _redis(redis_url) if redis_url else "no Redis",
        _rabbitmq(rabbitmq_url) if rabbitmq_url else "no RabbitMQ",
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2**30


def _postgresql(url: str, embedded: bool) -> str:
    with psycopg.connect(url) as connection:
        version = connection.execute("SHOW server_version").fetchone()
        fsync = connection.execute("SHOW fsync").fetchone()
    assert version is not None
    assert fsync is not None
    origin = "from a wheel" if embedded else "named by DATABASE_URL"
    return f"PostgreSQL {version[0].split()[0]} {origin}, fsync {fsync[0]}"


def _redis(url: str) -> str:
    import redis

    with redis.Redis.from_url(url) as client:
        return f"Redis {client.info('server')['redis_version']}"


def _rabbitmq(url: str) -> str:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        properties = connection._impl.server_properties
    return f"RabbitMQ {properties['version']}"
