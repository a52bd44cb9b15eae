"""The plans of the admin's lists over 1,000,000 events and deliveries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from outbox.admin import pagination
from outbox.models import Event

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.django_db]

ROWS = 1_000_000
# The most statements of the overview: those of the health report, some for each failing handler, 14 others.
OVERVIEW_STATEMENTS = 100
LARGE = ("outbox_event", "outbox_delivery")
# The row counts of a plan node.
ROW_COUNTS = (
    "Actual Rows",
    "Rows Removed by Filter",
    "Rows Removed by Index Recheck",
    "Rows Removed by Join Filter",
)

# Over the last ten days. Rare topics and states are among the oldest rows, which a full scan reads last.
_EVENTS = f"""
INSERT INTO outbox_event (id, topic, key, payload, headers)
SELECT (
        lpad(to_hex(((extract(epoch FROM now()) - 864000 + n * 864000.0 / {ROWS}) * 1000)::bigint), 12, '0')
        || '7' || lpad(to_hex(n % 4096), 3, '0') || '8' || lpad(to_hex(n), 15, '0')
    )::uuid,
    CASE WHEN n < 100 THEN 'shop.rare' WHEN n % 3 = 0 THEN 'shop.order_paid' ELSE 'shop.order_placed' END,
    'order-' || n / 3, '{{"n": 1}}', '{{}}'
FROM generate_series(0, {ROWS} - 1) AS n
"""

_DELIVERIES = """
INSERT INTO outbox_delivery
    (event_id, handler, queue, state, available_at, confirm_by, finished_at, waits_for)
SELECT id, CASE WHEN n % 2 = 0 THEN 'shop.mail' ELSE 'shop.stock' END, 'default', state, now(),
    CASE state WHEN 'dispatched' THEN now() END,
    CASE WHEN state NOT IN ('dispatched', 'pending') THEN now() END,
    CASE WHEN state = 'pending' AND n % 5 = 0 THEN 'batch' ELSE '' END
FROM (
    SELECT id, n, CASE
        WHEN n < 1000 THEN (ARRAY['failed', 'discarded', 'pending', 'dispatched'])[n % 4 + 1]
        WHEN n < 200000 AND n % 2 = 0 THEN 'pending' ELSE 'succeeded' END AS state
    FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS n FROM outbox_event) AS numbered
) AS event ORDER BY n
"""

PAGES = [
    ("event", ""),
    ("event", "published=hour"),
    ("event", "published=week"),
    ("event", "topic=shop.order_paid"),
    ("event", "topic=shop.rare"),
    ("event", "topic=shop.nothing&published=week"),
    ("event", "q=order-7"),
    ("event", "q=order-30000"),
    ("event", "q=order-30000&topic=shop.rare"),
    ("event", "q=order-3000*"),
    ("event", "q=nothing"),
    ("event", "q=shop.rare"),
    ("event", "q=shop.*"),
    ("event", "q={id}"),
    ("delivery", ""),
    ("delivery", "state=pending"),
    ("delivery", "state=waiting"),
    ("delivery", "state=waiting&handler=shop.mail"),
    ("delivery", "state=dispatched"),
    ("delivery", "state=failed"),
    ("delivery", "state=failed&handler=shop.mail"),
    ("delivery", "state=failed&handler=shop.nobody"),
    ("delivery", "state=blocking"),
    ("delivery", "state=blocking&handler=shop.mail"),
    ("delivery", "state=succeeded"),
    ("delivery", "state=discarded"),
    ("delivery", "state=pending&handler=shop.nobody"),
    ("delivery", "handler=shop.mail"),
    ("delivery", "handler=shop.nobody"),
    ("delivery", "topic=shop.rare"),
    ("delivery", "topic=shop.order_paid&state=pending"),
    ("delivery", "published=hour"),
    ("delivery", "published=week&state=discarded"),
    ("delivery", "q=order-7"),
    ("delivery", "q=order-30000&state=failed"),
    ("delivery", "q=shop.rare"),
    ("delivery", "q=nothing"),
    ("delivery", "q={id}"),
    ("delivery", "q={id}&state=pending"),
]


@pytest.fixture(scope="module")
def million(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """Fill the tables, and return the id of an event in the middle."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(_EVENTS)
        cursor.execute(_DELIVERIES)
        # VACUUM takes one table a statement here, and must run outside a transaction.
        cursor.execute("VACUUM ANALYZE outbox_event")
        cursor.execute("VACUUM ANALYZE outbox_delivery")
        middle = Event.objects.filter(key=f"order-{ROWS // 6}").values_list("pk", flat=True)[0]
        try:
            yield str(middle)
        finally:
            cursor.execute("TRUNCATE outbox_event, outbox_delivery")


@pytest.fixture
def operator(client: Client, million: str) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize(("model", "query"), PAGES)
def test_a_list_reads_a_bounded_part_of_an_index(
    operator: Client, million: str, model: str, query: str
) -> None:
    check(operator, f"/admin/outbox/{model}/?{query.format(id=million)}")


@pytest.mark.parametrize(
    "query", ["", "state=pending", "topic=shop.rare", "handler=shop.nobody", "state=dispatched"]
)
def test_later_pages_cost_no_more_than_the_first(operator: Client, query: str) -> None:
    url = "/admin/outbox/delivery/"
    after = check(operator, f"{url}?{query}")
    for _page in range(3):
        if after:
            after = check(operator, url + after)


def test_a_rare_old_row_is_found_page_by_page(operator: Client) -> None:
    url, found, steps = "?topic=shop.rare", 0, 0
    while url:
        changes = operator.get(f"/admin/outbox/event/{url}").context["cl"]
        found, url, steps = found + len(changes.result_list), changes.after_url, steps + 1
    assert (found, steps) == (100, ROWS // pagination.SCAN_LIMIT + 1)


@pytest.mark.parametrize("query", ["", "?part=live&period=week"])
def test_the_overview_reads_bounded_parts_of_indexes(operator: Client, query: str) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert operator.get(f"/admin/outbox/backlogsample/{query}").status_code == 200
    statements = [one["sql"] for one in captured.captured_queries]
    assert len(statements) <= OVERVIEW_STATEMENTS, statements
    # The health report sorts the waiting deliveries of all handlers if these are few.
    check_plans(statements, most_sorted=pagination.SCAN_LIMIT)


@pytest.mark.parametrize("place", ["ids", "payloads", "errors"])
@pytest.mark.parametrize("term", ["order-30000", "{id}", "13042", "nothing like it"])
def test_the_search_of_the_overview_reads_bounded_parts_of_indexes(
    operator: Client, million: str, place: str, term: str
) -> None:
    fields = {"q": term.format(id=million), "place": place, "period": "week"}
    with CaptureQueriesContext(connection) as captured:
        assert operator.post("/admin/outbox/backlogsample/search/", fields).status_code in (200, 302)
    check_plans([one["sql"] for one in captured.captured_queries])


def check_plans(statements: list[str], *, most_sorted: int = 5000) -> None:
    for sql in statements:
        if '"outbox_event"' in sql or "outbox_delivery" in sql:
            check_plan(sql, most_sorted)


def check(client: Client, url: str) -> str:
    """Load a page, assert its queries and their plans, and return the address of the next page."""
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    assert response.status_code == 200
    statements = [query["sql"] for query in captured.captured_queries]
    assert len(statements) <= 9, statements
    check_plans(statements)
    after_url: str = response.context["cl"].after_url
    return after_url


def check_plan(sql: str, most_sorted: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        (answer,) = cursor.fetchone()
    plan = answer if isinstance(answer, list) else json.loads(answer)
    for node in nodes(plan[0]["Plan"]):
        details = (node["Node Type"], node.get("Relation Name"), sql)
        assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in LARGE, details
        rows = sum(node.get(name, 0) for name in ROW_COUNTS)
        assert rows * node["Actual Loops"] <= pagination.SCAN_LIMIT + 1, details
        if "Sort" in node["Node Type"]:
            assert node["Actual Rows"] <= most_sorted, details


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)
