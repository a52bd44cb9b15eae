"""Create a database and broker names for the demo, on existing servers or on its own."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from example import services

from .brokers import emptied, reachable
from .errors import DemoError


@contextmanager
def surroundings(identity: str) -> Iterator[dict[str, str]]:
    """Yield the environment of the demo's processes; delete the database and the names afterwards."""
    with (
        services.postgres() as server_url,
        _own_database(server_url, identity) as database_url,
        services.broker() as broker_url,
        _own_names(broker_url or "", identity) as names,
    ):
        yield {
            "DATABASE_URL": database_url,
            "DJANGO_SETTINGS_MODULE": "example.project.settings",
            "EXAMPLE_SECRET_KEY": secrets.token_urlsafe(40),
            "EXAMPLE_DEBUG": "0",
            "EXAMPLE_ENVIRONMENT": "production",
            "PYTHONUNBUFFERED": "1",
            **names,
        }


@contextmanager
def _own_database(server_url: str, name: str) -> Iterator[str]:
    # Always a new database, so that the demo does not change an existing one.
    parts = urlsplit(server_url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise DemoError(
            f"The demo needs PostgreSQL, but DATABASE_URL begins with {parts.scheme!r}; use postgresql://."
        )
    _execute(server_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        # FORCE, because connections of this process may still be open.
        _execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(server_url: str, statement: sql.Composed) -> None:
    try:
        with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)
    except psycopg.Error as error:
        raise DemoError(f"PostgreSQL: {str(error).strip()}") from error


@contextmanager
def _own_names(broker_url: str, name: str) -> Iterator[dict[str, str]]:
    if urlsplit(broker_url).scheme in {"", "stub"}:
        yield {"DRAMATIQ_BROKER_URL": ""}
        return
    reachable(broker_url)
    # Redis has namespaces; RabbitMQ needs different names of queues.
    prefix = f"{name}_" if urlsplit(broker_url).scheme.startswith("amqp") else ""
    with emptied(broker_url, namespace=name, prefix=prefix):
        yield {
            "DRAMATIQ_BROKER_URL": broker_url,
            "EXAMPLE_BROKER_NAMESPACE": name,
            "EXAMPLE_QUEUE_PREFIX": prefix,
        }
