"""The cost of the hot path does not grow with the history: plans and pages are asserted, not times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from django.db import connection
from django.db.models.functions import Now

import outbox
from outbox.confirmations import confirm
from outbox.confirmations.outcome import Outcome
from outbox.events import DeliveryRef
from outbox.models import Delivery
from outbox.models.prunable_events import prune_chunk
from outbox.registry import BatchOptions
from outbox.run import Run
from outbox.uuid7 import uuid7_floor
from outbox.worker.middleware import OutboxMiddleware
from outbox.worker.poison import _crashed
from relay.claim import Claim
from relay.maintenance import Maintenance
from relay.messages.dispatch_ids import BrokerContents, OverdueDelivery
from relay.redelivery import Redelivery
from tests.support.history import BLOCKED, DUE, fill, unvacuumed
from tests.support.query_plans import TABLES, explained, nodes, pages

pytestmark = [pytest.mark.django_db, pytest.mark.postgres, pytest.mark.slow]

BATCH = BatchOptions(size=DUE, wait=timedelta(hours=1))

# A claimed row touches some pages of the table and of its indexes. Retained rows fill thousands of pages.
MAX_PAGES = 40 * DUE
# The pages of all indexes, for one row.
FEW_PAGES = 100


@pytest.fixture(scope="module", params=["current statistics", "statistics of an empty table"])
def history(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Fill the tables with retained rows, and with a few due rows."""
    with django_db_blocker.unblock(), connection.cursor() as cursor, unvacuumed(cursor):
        fill(cursor)
        if request.param == "current statistics":
            for table in TABLES:
                cursor.execute(f"VACUUM ANALYZE {table}")
        yield


@pytest.fixture(autouse=True)
def publish_without_savepoint(settings: Any) -> None:
    """Allow to publish in the transaction of the test: a savepoint has no plan."""
    settings.OUTBOX = {"ALLOW_TEST_TRANSACTION": True}


def publish() -> int:
    # publish_many() would use COPY, which has no plan.
    return len([outbox.publish("flaky.x", {"n": n}, key=f"k{n}") for n in range(DUE)])


def publish_once() -> int:
    keys = ["new", "new", "once-7"]
    return len({outbox.publish("flaky.x", dedup_key=key).pk for key in keys})


def claiming(**options: Any) -> Claim:
    return Claim(database="default", limit=DUE, **options)


def claim_batch() -> int:
    claim = claiming()
    assert claim.ready_in({"batches": BATCH})["batches"] <= 0
    return len(claim.claim_batch("batches", BATCH).rows)


def confirm_all(sent: list[DeliveryRef]) -> int:
    outcomes = [Outcome(one, "default", "flat", "succeeded", "succeeded", 0.1) for one in sent]
    return len(confirm(outcomes, "default")[1])


def unblock_keys(_sent: list[DeliveryRef]) -> int:
    keys = [("ordered", "busy"), *(("ordered", f"key-{n}") for n in range(DUE - 1))]
    return int(Delivery.objects.unblock_keys(keys, skipping=[]))


def extend_overdue() -> int:
    def ask(overdue: Sequence[OverdueDelivery], *, timeout_s: float) -> BrokerContents:
        ids = [row.delivery_id for row in overdue]
        return BrokerContents(present=set(ids[::2]), unknown=set(ids[1::2]))

    Redelivery(database="default", ask=ask).run()
    return int(Delivery.objects.overdue().count())


def check_rows(sent: list[DeliveryRef]) -> None:
    run = Run("default", "flat", "a message", deliveries=sent, events=[])
    OutboxMiddleware()._check_rows(run)


def find_crashed(sent: list[DeliveryRef]) -> int:
    Delivery.objects.filter(pk__in=[one.id for one in sent]).update(crashes=1)
    return len(_crashed("default"))


def prune(_sent: list[DeliveryRef]) -> int:
    before = uuid7_floor(datetime.now(tz=UTC))
    chunk: dict[str, Any] = {"before": before, "failed_retention": timedelta(1), "limit": DUE}
    return prune_chunk("default", after=None, **chunk)[1]


class Path(NamedTuple):
    """A function of a few dispatched deliveries, its expected result, and the indexes that it uses."""

    run: Callable[[list[DeliveryRef]], int | None]
    expected: int | None
    indexes: set[str]


PATHS = {
    "publish": Path(lambda _: publish(), DUE, set()),
    "publish once": Path(lambda _: publish_once(), 2, {"outbox_event_dedup"}),
    "claim": Path(lambda _: len(claiming().claim_due().rows), DUE, {"outbox_delivery_due"}),
    "claim of deliveries without a key": Path(
        lambda _: len(claiming().claim_due(skip_ordered=True).rows), DUE, {"outbox_delivery_due"}
    ),
    "claim of some queues": Path(
        lambda _: len(claiming(queues=("flat",)).claim_due().rows), DUE, {"outbox_delivery_due"}
    ),
    "claim of ordered deliveries": Path(
        lambda _: len(claiming().claim_ordered(skipping=[]).rows),
        DUE,
        {"outbox_delivery_due_ordered", "outbox_delivery_key"},
    ),
    "claim of a batch": Path(lambda _: claim_batch(), DUE, {"outbox_delivery_batch"}),
    "next due": Path(lambda _: claiming().due_in({"batches": BATCH}) <= 0, True, {"outbox_delivery_due"}),
    "confirm": Path(confirm_all, DUE, {"outbox_delivery_pkey"}),
    "settle": Path(lambda sent: len(Delivery.objects.settle(sent)), DUE, {"outbox_delivery_pkey"}),
    "unblock keys": Path(unblock_keys, 1, {"outbox_delivery_key", "outbox_delivery_key_sent"}),
    "redeliver": Path(
        lambda _: Redelivery(database="default", ask=None).run(), DUE, {"outbox_delivery_unconfirmed"}
    ),
    "extend overdue deliveries": Path(
        lambda _: extend_overdue(), 0, {"outbox_delivery_unconfirmed", "outbox_delivery_pkey"}
    ),
    "check rows before a run": Path(check_rows, None, {"outbox_delivery_pkey"}),
    "find crashed deliveries": Path(find_crashed, DUE, {"outbox_delivery_crashed"}),
    "unblock waiting deliveries": Path(
        lambda _: Maintenance(database="default", key_chunk=DUE).unblock_waiting(),
        1,
        {"outbox_delivery_key"},
    ),
    "end stale waits": Path(
        lambda _: Maintenance(database="default", key_chunk=DUE).end_stale_waits(),
        DUE,
        {"outbox_delivery_waiting"},
    ),
    "end ordering": Path(
        lambda _: Delivery.objects.end_ordering(["ordered"], limit=DUE), DUE, {"outbox_delivery_key"}
    ),
    "look for ordering to end": Path(
        lambda _: Delivery.objects.end_ordering(["batches", "flat"], limit=DUE), 0, {"outbox_delivery_key"}
    ),
    "rename ordered deliveries": Path(
        lambda _: Delivery.objects.rename_handlers({"ordered": "new"}, limit=DUE, only_keyed=True),
        DUE,
        {"outbox_delivery_key"},
    ),
    "prune": Path(prune, DUE, {"outbox_event_pkey"}),
}


@pytest.mark.parametrize("name", PATHS)
def test_retained_rows_cost_nothing(history: None, name: str) -> None:
    path = PATHS[name]
    dispatched = [one.ref for one in Delivery.objects.filter(state="dispatched")[:DUE]]
    with explained() as plans:
        assert path.run(dispatched) == path.expected
    assert plans
    for plan in plans:
        check(plan)
    used = {node["Index Name"] for plan in plans for node in nodes(plan) if "Index Name" in node}
    assert path.indexes <= used, used


@pytest.mark.parametrize("sent", [False, True])
def test_a_key_is_unblocked_without_reading_all_its_deliveries(history: None, sent: bool) -> None:
    busy = Delivery.objects.filter(handler="ordered", key="busy")
    assert busy.count() == BLOCKED
    if sent:
        busy.filter(pk=busy.latest("pk").pk).update(state="dispatched", waits_for="")
    with explained() as plans:
        assert Delivery.objects.unblock_keys([("ordered", "busy")], skipping=[]) == (not sent)
    assert sum(map(pages, plans)) <= FEW_PAGES


def test_maintenance_reads_one_delivery_of_each_blocked_key(history: None) -> None:
    maintenance = Maintenance(database="default", key_chunk=DUE)
    with explained() as plans:
        assert maintenance.unblock_waiting() == 1
    read = [node for plan in plans for node in nodes(plan) if node.get("Relation Name") in TABLES]
    assert read
    # The statement that finds the keys, and three look-ups of the one that unblocks them.
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= 4 * (DUE + 1)


def test_the_first_delivery_of_a_key_is_claimed_without_reading_the_others(history: None) -> None:
    busy = Delivery.objects.filter(handler="ordered", key="busy")
    Delivery.objects.filter(state="pending", waits_for="").update(available_at=Now() + timedelta(days=1))
    assert Delivery.objects.unblock_keys([("ordered", "busy")], skipping=[]) == 1
    with explained() as plans:
        claimed = claiming().claim_ordered(skipping=[]).rows
    assert [row.delivery_id for row in claimed] == [busy.earliest("pk").pk]
    assert sum(map(pages, plans)) <= FEW_PAGES


def test_publishing_reads_no_rows(history: None) -> None:
    with explained() as plans:
        publish()
    assert plans
    read = [node for plan in plans for node in nodes(plan) if "Relation Name" in node]
    assert {node["Node Type"] for node in read} == {"ModifyTable"}, read


def check(plan: dict[str, Any]) -> None:
    for node in nodes(plan):
        assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in TABLES, plan
    assert pages(plan) <= MAX_PAGES, plan
