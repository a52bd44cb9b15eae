"""The write-ahead log of an event, as the statements themselves report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

import outbox
from outbox.confirmations import confirm
from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery
from outbox.registry import registry
from relay.claim import Claim
from tests.support.query_plans import TABLES, nodes
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

EVENTS = 200
# Bytes of one event with a small payload, measured, with 15 % room. A page image would add thousands.
MOST_TO_PUBLISH = 680
MOST_TO_DISPATCH_AND_CONFIRM = 1100
# A checkpoint makes the next change of each page log the whole page. Any process may cause one.
MAX_ATTEMPTS = 20


class Captured(Exception):
    """Raised in place of a statement."""


@pytest.fixture
def handler() -> Iterator[None]:
    """Declare a handler without an ordering key."""

    @outbox.handler("logged.*", name="shop.send_receipt", queue_name=QUEUE)
    def send_receipt(event: outbox.ReceivedEvent) -> None:
        """Do nothing."""

    yield
    registry.remove("shop.send_receipt")


def statement_of(run: Callable[[], Any]) -> tuple[str, Any]:
    """Return the first statement on the tables, with its parameters, in place of running it."""

    def capture(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if any(table in sql for table in TABLES) and not sql.startswith("PREPARE"):
            raise Captured(sql, params)
        return execute(sql, params, many, context)

    with (
        pytest.raises(Captured) as captured,
        connection.execute_wrapper(capture),
        transaction.atomic(),
    ):
        run()
    sql, params = captured.value.args
    return sql, params


def logged(run: Callable[[], Any]) -> tuple[int, int]:
    """Run the statement and commit; return the bytes that it logged, and the number of page images."""
    sql, params = statement_of(run)
    settings, end, statement = sql.rpartition("; ")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"{settings}{end}EXPLAIN (ANALYZE, WAL, FORMAT JSON) {statement}", params)
        while cursor.nextset():
            continue
        ((answer,),) = cursor.fetchall()
    plan = answer[0]["Plan"]
    # The INSERT of the event runs after the other nodes; no node reads it.
    counted = [plan, *(node for node in nodes(plan) if node.get("Subplan Name") == "CTE new_event")]
    return sum(node["WAL Bytes"] for node in counted), sum(node["WAL FPI"] for node in counted)


def publish_one(number: int) -> tuple[int, int]:
    return logged(lambda: outbox.publish("logged.order_paid", {"order": number, "amount": "12.50"}))


def dispatch_and_confirm() -> list[tuple[int, int]]:
    claim = Claim(database="default", limit=EVENTS)
    claimed = logged(lambda: claim.claim_due())
    sent = Delivery.objects.unconfirmed().only("event")
    outcomes = [
        Outcome(one.ref, "default", "shop.send_receipt", "succeeded", "succeeded", 0.1) for one in sent
    ]
    assert len(outcomes) == EVENTS
    return [claimed, logged(lambda: confirm(outcomes, "default"))]


def test_an_event_logs_few_bytes(handler: None) -> None:
    for _attempt in range(MAX_ATTEMPTS):
        published = [publish_one(number) for number in range(EVENTS)]
        dispatched = dispatch_and_confirm()
        if not any(images for _bytes, images in [*published, *dispatched]):
            break
    else:
        pytest.fail("each attempt was disturbed by a checkpoint")
    assert Delivery.objects.unconfirmed().count() == 0
    publish_bytes = sum(size for size, _images in published) / EVENTS
    dispatch_bytes = sum(size for size, _images in dispatched) / EVENTS
    assert 0.5 * MOST_TO_PUBLISH < publish_bytes <= MOST_TO_PUBLISH
    assert 0.5 * MOST_TO_DISPATCH_AND_CONFIRM < dispatch_bytes <= MOST_TO_DISPATCH_AND_CONFIRM
