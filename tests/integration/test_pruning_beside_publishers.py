"""Pruning never keeps a publisher waiting: short transactions of a bounded size, and no lock that would."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from outbox import pruning
from outbox.models import Event
from outbox.uuid7 import uuid7_floor
from tests.factories import make_delivery, make_event
from tests.helpers import publish
from tests.statements import counted

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

OLD = timedelta(days=30)
CHUNK = 10
# What an ordinary reader or writer of rows takes; none of these excludes another.
HARMLESS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}

_LOCKS = """
SELECT mode FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE pid = pg_backend_pid() AND relname LIKE 'outbox_%'
"""


def make_old(count: int) -> None:
    for _event in range(count):
        make_delivery(make_event(created_at=timezone.now() - OLD), status="succeeded")


def prune_chunk() -> int:
    before = uuid7_floor(timezone.now() - OLD / 2)
    _last, deleted = Event.objects.prune_chunk(after=None, before=before, failed_retention=OLD, limit=CHUNK)
    return int(deleted)


def elsewhere(do: Callable[[], Any]) -> Any:
    """Do it on a connection of its own, which gives up if it has to wait for a lock."""

    def patiently() -> Any:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '3s'")
            return do()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(patiently).result()


def test_a_publisher_does_not_wait_for_a_chunk_that_is_not_committed() -> None:
    make_old(CHUNK)
    with transaction.atomic():
        assert prune_chunk() == CHUNK
        with connection.cursor() as cursor:
            cursor.execute(_LOCKS)
            assert {mode for (mode,) in cursor.fetchall()} <= HARMLESS
        event = elsewhere(lambda: publish("flaky.x"))
    assert list(Event.objects.all()) == [event]


def test_pruning_does_not_wait_for_a_publisher_that_has_not_committed() -> None:
    make_old(CHUNK)
    with transaction.atomic():
        old = Event.objects.count()
        make_delivery()
        assert elsewhere(prune_chunk) == old == CHUNK


def test_each_chunk_is_a_transaction_of_its_own_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "PRUNE_CHUNK", CHUNK)
    make_old(3 * CHUNK + 1)
    deleted: list[int] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("DELETE FROM") and "outbox_event" in sql:
            deleted.append(context["cursor"].rowcount)
        return result

    with counted() as statements, connection.execute_wrapper(watch):
        assert pruning.prune("default") == 3 * CHUNK + 1
        texts = statements.texts()
    assert deleted == [CHUNK, CHUNK, CHUNK, 1]
    assert texts.count("COMMIT") >= 4


def test_a_pass_looks_at_no_more_chunks_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "PRUNE_CHUNK", CHUNK)
    make_old(3 * CHUNK)
    assert pruning.Pruning("default").go_on(2) == 2 * CHUNK
