"""The servers that the demo and the tests start: they answer, survive, and go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from example import services
from tests.conftest import ROOT
from tests.support.processes import Process, wait_until

pytestmark = pytest.mark.server

FORSAKEN = """
import os, signal, sys
from example import services
server = services.EmbeddedRedis().start() if sys.argv[1] == "redis" else services.EmbeddedPostgres().start()
print(server.pid, server.directory, flush=True)
signal.pause()
"""


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return not state.stdout.strip().startswith("Z")


@pytest.fixture
def no_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the servers that the environment names."""
    for name in ("DATABASE_URL", "DRAMATIQ_BROKER_URL", "RABBITMQ_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the Redis of this machine."""
    monkeypatch.setattr("example.services.redis_executable", lambda: None)
    monkeypatch.setattr("example.services.embedded_redis.redis_executable", lambda: None)


@pytest.mark.usefixtures("no_urls")
def test_postgres_keeps_commits_and_address_when_killed() -> None:
    with services.EmbeddedPostgres() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        address = server.url
        for interrupt in (server.kill, lambda: server.restart("immediate"), server.restart):
            interrupt()
            server.start()
            with psycopg.connect(address) as connection:
                assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
        directory, pid = server.directory, server.pid
    assert pid is not None
    assert not directory.exists()
    assert not is_alive(pid)


@pytest.mark.usefixtures("no_urls")
def test_postgres_prefers_the_url_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://elsewhere/db")
    with services.postgres() as url:
        assert url == "postgres://elsewhere/db"


@pytest.mark.usefixtures("no_urls")
@pytest.mark.skipif(services.redis_executable() is None, reason="no redis-server to start")
def test_redis_returns_at_its_address_when_killed() -> None:
    import redis

    with services.EmbeddedRedis() as server:
        for interrupt in (server.kill, server.restart):
            interrupt()
            server.start()
            with redis.Redis.from_url(server.url) as client:
                assert client.ping()
        directory, pid = server.directory, server.pid
    assert pid is not None
    assert not directory.exists()
    assert not is_alive(pid)


@pytest.mark.usefixtures("no_urls", "no_redis")
def test_redis_says_so_when_there_is_none() -> None:
    with services.redis() as url:
        assert url is None
    with pytest.raises(services.ServiceError, match="no redis-server"):
        services.EmbeddedRedis().start()


@pytest.mark.usefixtures("no_urls", "no_redis")
def test_an_amqp_url_is_the_broker_but_not_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAMATIQ_BROKER_URL", "amqp://elsewhere")
    with services.broker() as broker, services.redis() as redis:
        assert (broker, redis) == ("amqp://elsewhere", None)


def test_rabbitmq_is_not_mistaken_for_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1")
    assert services.rabbitmq_url() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_server_goes_away_with_the_process_that_started_it(kind: str, number: signal.Signals) -> None:
    if kind == "redis" and services.redis_executable() is None:
        pytest.skip("no redis-server to start")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with Process(sys.executable, "-c", FORSAKEN, kind, env=env) as process:
        found = process.wait_for_line(r"^(\d+) (/\S+)$")
        process.send_signal(number)
        process.wait()
        wait_until(lambda: not is_alive(int(found[1])), what=f"the {kind} server to end")
        wait_until(lambda: not Path(found[2]).exists(), what=f"the directory of the {kind} server to go")


@pytest.mark.usefixtures("no_urls")
def test_a_url_names_the_socket_for_every_client() -> None:
    with services.EmbeddedPostgres() as server:
        host = urlsplit(server.url).netloc.partition("@")[2]
        assert Path(unquote(host), ".s.PGSQL.5432").is_socket()
