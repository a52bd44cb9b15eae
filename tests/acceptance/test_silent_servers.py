"""A relay or worker ends in time although a server accepts connections and does not answer."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest

from outbox.models import ProcessHeartbeat
from tests.conftest import database_url
from tests.support.data_flow import publish
from tests.support.pooler import PostgresProxy
from tests.support.processes import Process, wait_until
from tests.support.proxy import Proxy

from .folder import Folder
from .stage import relay, wait_for_states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

PROMPTLY_S = 5
DISPATCH_TIMEOUT_S = 2
# The relay's margin after DISPATCH_TIMEOUT, and the time of a busy machine.
STOP_LIMIT_S = DISPATCH_TIMEOUT_S + 10 + PROMPTLY_S
# The worker tries for 30 s to write its outcomes.
WORKER_STOP_LIMIT_S = 30 + 3 * PROMPTLY_S
OPTIONS = {"OUTBOX_TEST_OPTIONS": json.dumps({"DISPATCH_TIMEOUT": DISPATCH_TIMEOUT_S})}


def wait_for_heartbeat(process: Process) -> None:
    """Wait until a relay runs."""
    wait_until(ProcessHeartbeat.objects.filter(pid=process.pid).exists, what=f"{process} to run")


@pytest.mark.redis
def test_a_relay_ends_while_the_database_does_not_answer(redis_env: dict[str, str]) -> None:
    with PostgresProxy(database_url()) as database:
        environment = redis_env | OPTIONS | {"DATABASE_URL": database.url}
        with relay(environment) as process:
            wait_for_heartbeat(process)
            database.freeze()
            publish("filed.mail")
            process.terminate()
            assert process.wait(STOP_LIMIT_S) == 0


@pytest.mark.redis
def test_a_relay_ends_while_the_database_accepts_connections_and_does_not_answer(
    redis_env: dict[str, str],
) -> None:
    with PostgresProxy(database_url()) as database:
        environment = redis_env | OPTIONS | {"DATABASE_URL": database.url}
        with relay(environment) as process:
            wait_for_heartbeat(process)
            accepted = database.accepted
            database.freeze()
            database.cut()
            wait_until(lambda: database.accepted > accepted, what="the relay to reconnect")
            process.terminate()
            assert process.wait(STOP_LIMIT_S) == 0


@pytest.mark.redis
def test_a_relay_that_starts_while_the_database_does_not_answer_ends_promptly(
    redis_env: dict[str, str],
) -> None:
    with PostgresProxy(database_url()) as database:
        database.freeze()
        environment = redis_env | {"DATABASE_URL": database.url}
        with Process.manage("run_relay", env=environment) as process:
            wait_until(lambda: database.accepted, what="the relay to connect")
            process.terminate()
            assert process.wait(PROMPTLY_S) == 0


def test_a_relay_ends_while_the_broker_does_not_answer(broker_env: dict[str, str], broker_url: str) -> None:
    url = urlsplit(broker_url)
    with Proxy(url.port or (5672 if "amqp" in url.scheme else 6379), url.hostname or "127.0.0.1") as broker:
        login = url.netloc.rpartition("@")[0]
        netloc = f"{login}@127.0.0.1:{broker.port}" if login else f"127.0.0.1:{broker.port}"
        silent = url._replace(netloc=netloc).geturl()
        with relay(broker_env | OPTIONS | {"OUTBOX_TEST_BROKER_URL": silent}) as process:
            wait_for_heartbeat(process)
            broker.freeze()
            publish("filed.mail")
            process.terminate()
            assert process.wait(STOP_LIMIT_S) == 0


@pytest.mark.redis
def test_a_worker_ends_while_the_database_does_not_answer(redis_env: dict[str, str], folder: Folder) -> None:
    with PostgresProxy(database_url()) as database, relay(redis_env):
        environment = redis_env | {"DATABASE_URL": database.url}
        with worker(environment) as process:
            publish("filed.mail")
            wait_for_states(succeeded=1)
            database.freeze()
            publish("filed.mail")
            wait_until(lambda: len(folder.done) == 2, what="the handler to run")
            process.terminate()
            assert process.wait(WORKER_STOP_LIMIT_S) == 0
