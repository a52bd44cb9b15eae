"""Pruning never blocks a publisher: its transactions are short, and take no lock that publishers wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction

from outbox.models import Event, prunable_events
from outbox.operations.pruning import PruningPass
from outbox.uuid7 import uuid7_floor
from tests.support.data_flow import publish
from tests.support.factories import make_delivery, make_event
from tests.support.statements import counted

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

OLD = timedelta(days=30)
CHUNK = 10
# The locks of ordinary readers and writers of rows, which do not conflict with each other.
HARMLESS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}

_LOCKS = """
SELECT mode FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE pid = pg_backend_pid() AND relname LIKE 'outbox_%'
"""


def make_old(count: int) -> None:
    for _event in range(count):
        make_delivery(make_event(created_at=datetime.now(UTC) - OLD), state="succeeded")


def prune_chunk() -> int:
    before = uuid7_floor(datetime.now(UTC) - OLD / 2)
    _last, deleted = prunable_events.prune_chunk(
        "default", after=None, before=before, failed_retention=OLD, limit=CHUNK
    )
    return deleted


def elsewhere(do: Callable[[], Any]) -> Any:
    """Call a function on a separate connection, which fails if it waits for a lock."""

    def with_timeout() -> Any:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '3s'")
            return do()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(with_timeout).result()


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


def test_each_chunk_is_a_separate_and_bounded_transaction() -> None:
    make_old(3 * CHUNK + 1)
    deleted: list[int] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if "DELETE FROM outbox_event" in sql:
            deleted.append(context["cursor"].rowcount)
        return result

    with counted() as statements, connection.execute_wrapper(watch):
        assert PruningPass("default", chunk_size=CHUNK).delete_chunks() == 3 * CHUNK + 1
        texts = statements.texts()
    assert deleted == [CHUNK, CHUNK, CHUNK, 1]
    assert texts.count("COMMIT") >= 4


def test_a_pass_prunes_no_more_chunks_than_its_limit() -> None:
    make_old(3 * CHUNK)
    assert PruningPass("default", chunk_size=CHUNK).delete_chunks(2) == 2 * CHUNK
