"""Fixtures of several files: brokers on both servers, and the servers of benchmarks."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.benchmarks.surroundings import Surroundings
from tests.support.brokers import Brokers, RabbitmqBrokers, RedisBrokers


@pytest.fixture
def redis_brokers(redis_url: str) -> Iterator[RedisBrokers]:
    """Make brokers on the Redis server, which leave nothing behind."""
    with closing(RedisBrokers(redis_url)) as brokers:
        yield brokers


@pytest.fixture
def rabbitmq_brokers(rabbitmq_url: str) -> Iterator[RabbitmqBrokers]:
    """Make brokers on the RabbitMQ server, which leave nothing behind."""
    with closing(RabbitmqBrokers(rabbitmq_url)) as brokers:
        yield brokers


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def brokers(request: pytest.FixtureRequest) -> Brokers:
    """Make brokers on each server in turn."""
    found: Brokers = request.getfixturevalue(f"{request.param}_brokers")
    return found


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen, accept connections, and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def surroundings(postgres_url: str, redis_url: str) -> Iterator[Surroundings]:
    """Return servers and names for benchmarks, which leave nothing behind."""
    found = Surroundings(
        database_url=postgres_url,
        redis_url=redis_url,
        rabbitmq_url=None,
        prefix=f"bench_{uuid.uuid4().hex[:8]}",
        with_peers=False,
    )
    yield found
    found.clean()
