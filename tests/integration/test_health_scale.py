"""The cost of the health report on large tables: its statements, and the rows that they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from outbox.management.commands import outbox_status
from outbox.models import PausedHandler
from outbox.operations import backlog, blocked_keys, health_figures
from outbox.operations.health import get_health
from outbox.operations.health_report import LIST_LIMIT, ProblemKind
from tests.support.query_plans import explained, nodes
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.django_db]

ROWS = 200_000
LIMIT = 1000
# About three for each of at most LIST_LIMIT handlers with a problem, and twelve for the figures.
MOST_STATEMENTS = 60

# Of ten rows four have succeeded, and the others are in the six kinds of backlog. Backlogs of many handlers
# have the first ones of the alphabet in most rows.
_DELIVERIES = f"""
INSERT INTO outbox_delivery
    (event_id, handler, queue, key, state, waits_for, available_at, due_since, dispatched_at, confirm_by,
     finished_at, error)
SELECT gen_random_uuid(), CASE WHEN n % 1000 < 10 THEN 'rare' || n % 100 ELSE 'common' END, '{QUEUE}',
    CASE WHEN kind = 5 AND n % 100 > 10 THEN 'key-' || n ELSE '' END,
    (ARRAY['pending', 'pending', 'pending', 'pending', 'dispatched', 'failed'])[least(kind, 6) + 1],
    CASE WHEN kind = 3 THEN 'resume' ELSE '' END,
    now() + CASE WHEN kind IN (1, 2) THEN interval '1 hour' ELSE interval '-1 hour' END,
    CASE WHEN kind = 2 THEN now() - interval '2 hours' END,
    CASE WHEN kind >= 4 THEN now() - interval '30 minutes' END,
    CASE WHEN kind = 4 THEN now() + interval '30 minutes' END,
    CASE WHEN kind >= 5 THEN now() END, CASE WHEN kind = 5 THEN 'ValueError: no' ELSE '' END
FROM (SELECT n, n % 10 AS kind FROM generate_series(1, {ROWS}) AS n) AS numbered
WHERE kind < 6
UNION ALL
SELECT gen_random_uuid(), 'common', '{QUEUE}', '', 'succeeded', '', now(), NULL, now(), NULL, now(), ''
FROM generate_series(1, {ROWS} * 4 / 10)
"""


@pytest.fixture(scope="module")
def large(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Fill the table with deliveries of every kind."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(_DELIVERIES)
        cursor.execute("VACUUM ANALYZE outbox_delivery")
        try:
            yield
        finally:
            cursor.execute("TRUNCATE outbox_delivery")


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that a statement without one reads far more rows."""
    for module in (health_figures, outbox_status):
        monkeypatch.setattr(module, "COUNT_LIMIT", LIMIT)
    monkeypatch.setattr(blocked_keys, "FAILED_LIMIT", LIMIT)


def pause_many() -> None:
    for number in range(LIST_LIMIT):
        PausedHandler.objects.pause(f"rare{number}")
    PausedHandler.objects.pause("common")


def rows_of(node: dict[str, Any]) -> int:
    names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return int(sum(node.get(name, 0) for name in names) * node["Actual Loops"])


def test_each_statement_reads_a_bounded_part_of_an_index(large: None, limited: None) -> None:
    with transaction.atomic(), explained() as plans:
        pause_many()
        health = get_health()
    assert len(plans) > 10
    for plan in plans:
        for node in nodes(plan):
            assert node["Node Type"] != "Seq Scan" or node["Relation Name"] != "outbox_delivery", plan
            assert rows_of(node) <= 2 * LIMIT, plan
    figures = health.figures
    counts = (figures.due, figures.scheduled, figures.put_off, figures.waiting, figures.unconfirmed)
    assert counts[0] == counts[2] == counts[3] == counts[4] == figures.failed == LIMIT
    assert figures.oldest_due_s >= 7200
    assert figures.oldest_unconfirmed_s >= 3600


def test_the_backlog_by_handler_reads_a_bounded_part_of_an_index(
    large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "COUNT_LIMIT", LIMIT)
    with transaction.atomic(), explained() as plans:
        found = list(backlog.backlogs("default"))
    assert len(plans) == 4
    for plan in plans:
        assert max(rows_of(node) for node in nodes(plan)) <= LIMIT, plan
    others = {one.state: one.deliveries for one in found if one.handler == backlog.OTHERS}
    assert others == dict.fromkeys(("pending", "waiting", "dispatched", "failed"), LIMIT)


def test_the_number_of_statements_does_not_follow_the_number_of_rows(large: None) -> None:
    pause_many()
    with CaptureQueriesContext(connection) as captured:
        get_health()
    assert len(captured) <= MOST_STATEMENTS


def test_a_backlog_of_one_handler_hides_no_other_handler(large: None, limited: None) -> None:
    failing = [one for one in get_health().problems if one.kind == ProblemKind.HANDLER_FAILS]
    assert len(failing) > 1
    assert failing[0].subject == "common"
    assert failing[0].count == LIMIT
