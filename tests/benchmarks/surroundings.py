"""The servers of a run: a database for each driver, and names at the broker that are removed at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg

from . import environments
from .benchmark import Benchmark, Broker, BrokerClass, Way
from .drivers import Driver
from .environments import EnvironmentMissing

_numbers = count(1)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The servers of a run.

    Args:
        prefix: the prefix of database names and of names at a broker.
    """

    database_url: str
    redis_url: str | None
    rabbitmq_url: str | None
    prefix: str
    with_peers: bool = True
    databases: list[str] = field(default_factory=list)

    def broker_url(self, broker: Broker) -> str | None:
        """Return the URL of a broker; None if there is none."""
        return self.redis_url if broker == "redis" else self.rabbitmq_url

    def start(self, way: Way, benchmark: Benchmark) -> Driver:
        """Start the driver of a way, with an empty database of its own.

        Raises:
            EnvironmentMissing: for a peer that cannot be installed.
        """
        import sys

        python = sys.executable
        if way.peer is not None:
            if not self.with_peers:
                raise EnvironmentMissing("omitted by --no-peers")
            name = way.module.rpartition(".")[2]
            python = environments.python_for(name, way.peer.requirements, at_least=way.peer.python)
        return Driver(python, way.module, env=self.environment(benchmark.broker, way.broker_class))

    def environment(self, broker: Broker, broker_class: BrokerClass = "package") -> dict[str, str]:
        """Create a database; return the environment variables that name it and the broker."""
        name = f"{self.prefix}_{next(_numbers)}"
        self._execute(f'CREATE DATABASE "{name}"')
        self.databases.append(name)
        return {
            "BENCH_DATABASE": json.dumps(_connection(self.database_url) | {"NAME": name}),
            "BENCH_BROKER_URL": self.broker_url(broker) or "",
            "BENCH_BROKER_CLASS": broker_class,
            "BENCH_PREFIX": self.prefix,
        }

    def clean(self) -> None:
        """Remove the databases of the run, and its names at the brokers."""
        for name in self.databases:
            self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        if self.redis_url:
            _clear_redis(self.redis_url, self.prefix)
        if self.rabbitmq_url:
            _clear_rabbitmq(self.rabbitmq_url, f"{self.prefix}_queue")

    def _execute(self, statement: Any) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(statement)


def _connection(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "HOST": unquote(parts.hostname or "") if "%2F" not in parts.netloc else _socket_folder(parts.netloc),
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


def _socket_folder(netloc: str) -> str:
    # urlsplit() converts host names to lower case, but this is a path.
    return unquote(netloc.rpartition("@")[2].partition(":")[0])


def _clear_redis(url: str, prefix: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(f"*{prefix}*", count=1000):
            client.delete(key)


def _clear_rabbitmq(url: str, queue: str) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection, connection.channel() as channel:
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ", f"{queue}_by_hand"):
            channel.queue_delete(name)
