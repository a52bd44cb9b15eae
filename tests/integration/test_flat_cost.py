"""What the hot path costs does not follow the history: plans and pages are asserted, not times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from django.db import connection
from django.db.models.functions import Now

import outbox
from outbox.confirmations import confirm
from outbox.crashes import _suspects
from outbox.middleware import OutboxMiddleware
from outbox.models import Delivery, Event
from outbox.outcomes import Outcome
from outbox.registry import Batching
from outbox.runs import Run
from outbox.uuid7 import uuid7_floor
from relay.claim import Claim
from relay.copies import Held, Overdue
from relay.housekeeping import Housekeeping
from relay.redelivery import Redelivery
from tests.plans import TABLES, explained, nodes, pages

pytestmark = [pytest.mark.django_db, pytest.mark.postgres, pytest.mark.slow]

RETAINED = 100_000
SCHEDULED = 10_000
LANE = 20_000
DUE = 20
BATCH = Batching(size=DUE, wait=timedelta(hours=1))

# Each row that is taken touches some pages of the table and of its indexes. What is retained has thousands.
MOST_PAGES = 40 * DUE
# Of all indexes, for one row.
FEW_PAGES = 100

# One event each: handler, key, held, status, and when it is due, in seconds from now.
ROWS = [
    (RETAINED, ("flat", "", "", "succeeded", -3600)),
    (SCHEDULED, ("flat", "", "", "pending", 3600 * 24)),
    (SCHEDULED, ("heap", "", "batch", "pending", 3600 * 24)),
    (SCHEDULED, ("flat", "", "", "dispatched", -3600)),
    (SCHEDULED // 10, ("flat", "", "", "pending", -60)),
    (LANE, ("lane", "busy", "lane", "pending", -60)),
    (SCHEDULED, ("sent", "", "", "dispatched", -3600)),
    (DUE, ("lane", "", "", "pending", -60)),
    (DUE, ("heap", "", "batch", "pending", -60)),
    (DUE, ("late", "", "", "dispatched", -7200)),
]

_EVENTS = """
INSERT INTO outbox_event (id, topic, key, dedup_key, payload, headers)
SELECT (lpad(to_hex(n), 12, '0') || '70008' || repeat('0', 15))::uuid, 'flaky.x', '', 'once-' || n, '{}', '{}'
FROM generate_series(0, %s - 1) AS n
"""

# What is late should have been confirmed a minute ago; the other dispatched ones have an hour left.
_DELIVERIES = """
INSERT INTO outbox_delivery
    (event_id, handler, queue, key, held, status, available_at, confirm_by, finished_at)
SELECT (lpad(to_hex(n), 12, '0') || '70008' || repeat('0', 15))::uuid, handler, 'flat',
       CASE WHEN handler IN ('lane', 'sent') AND key = '' THEN 'lane-' || n ELSE key END,
       held, status, now() + n * interval '1 microsecond' + due * interval '1 second',
       CASE WHEN handler = 'late' THEN now() - interval '1 minute'
            WHEN status = 'dispatched' THEN now() + interval '1 hour' END,
       CASE WHEN status = 'succeeded' THEN now() END
FROM generate_series(%s, %s - 1) AS n,
     (VALUES (%s, %s, %s, %s, %s)) AS each(handler, key, held, status, due)
"""


@pytest.fixture(scope="module", params=["current statistics", "statistics of an empty table"])
def history(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Fill the tables with what is retained, and with a little of what is due."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            cursor.execute(f"VACUUM ANALYZE {table}")
        fill(cursor)
        if request.param == "current statistics":
            for table in TABLES:
                cursor.execute(f"VACUUM ANALYZE {table}")
        try:
            yield
        finally:
            cursor.execute("TRUNCATE outbox_event, outbox_delivery")
            for table in TABLES:
                cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


def fill(cursor: Any) -> None:
    cursor.execute(_EVENTS, [sum(count for count, _row in ROWS)])
    first = 0
    for count, row in ROWS:
        cursor.execute(_DELIVERIES, [first, first + count, *row])
        first += count


def publish() -> int:
    # Many at once go by COPY, which has no plan.
    return len([outbox.publish("flaky.x", {"n": n}, key=f"k{n}") for n in range(DUE)])


def publish_once() -> int:
    keys = ["new", "new", "once-7"]
    return len({outbox.publish("flaky.x", dedup_key=key).pk for key in keys})


def claiming(**options: Any) -> Claim:
    return Claim(database="default", limit=DUE, **options)


def claim_batch() -> int:
    claim = claiming()
    assert claim.ripe_in({"heap": BATCH})["heap"] <= 0
    return len(claim.take_batch("heap", BATCH).rows)


def confirm_all(pks: list[int]) -> int:
    outcomes = [Outcome(pk, "default", "flat", "succeeded", "succeeded", 0.1) for pk in pks]
    return len(confirm(outcomes, "default")[1])


def release_lanes(_pks: list[int]) -> int:
    lanes = [("lane", "busy"), *(("lane", f"lane-{n}") for n in range(DUE - 1))]
    return int(Delivery.objects.release_lanes(lanes, skipping=[]))


def hold_overdue() -> int:
    def ask(overdue: Sequence[Overdue], *, timeout_s: float) -> Held:
        ids = [row.delivery_id for row in overdue]
        return Held(there=set(ids[::2]), unknown=set(ids[1::2]))

    Redelivery(database="default", ask=ask).run()
    return int(Delivery.objects.overdue().count())


def look_up(pks: list[int]) -> None:
    run = Run("default", "flat", "a message", deliveries=pks, events=[])
    OutboxMiddleware()._look_up(run)


def find_suspects(pks: list[int]) -> int:
    Delivery.objects.filter(pk__in=pks).update(crashes=1)
    return len(_suspects("default"))


def prune(_pks: list[int]) -> int:
    before = uuid7_floor(datetime.now(tz=UTC))
    chunk = {"after": None, "before": before, "failed_retention": timedelta(1), "limit": DUE}
    return int(Event.objects.prune_chunk(**chunk)[1])


class Path(NamedTuple):
    """What to do with a few dispatched deliveries, what to expect of it, and the indexes that it walks."""

    run: Callable[[list[int]], int | None]
    expected: int | None
    indexes: set[str]


PATHS = {
    "publish": Path(lambda _: publish(), DUE, set()),
    "publish once": Path(lambda _: publish_once(), 2, {"outbox_event_dedup"}),
    "claim": Path(lambda _: len(claiming().take().rows), DUE, {"outbox_delivery_due"}),
    "claim beside lanes": Path(
        lambda _: len(claiming().take(leave_lanes=True).rows), DUE, {"outbox_delivery_due"}
    ),
    "claim of some queues": Path(
        lambda _: len(claiming(queues=("flat",)).take().rows), DUE, {"outbox_delivery_due"}
    ),
    "claim of lanes": Path(
        lambda _: len(claiming().take_lanes(skipping=[]).rows),
        DUE,
        {"outbox_delivery_due_lanes", "outbox_delivery_lane"},
    ),
    "claim of a batch": Path(lambda _: claim_batch(), DUE, {"outbox_delivery_batch"}),
    "next due": Path(lambda _: claiming().due_in({"heap": BATCH}) <= 0, True, {"outbox_delivery_due"}),
    "confirm": Path(confirm_all, DUE, {"outbox_delivery_pkey"}),
    "settle": Path(lambda pks: len(Delivery.objects.settle(pks)), DUE, {"outbox_delivery_pkey"}),
    "release lanes": Path(release_lanes, 1, {"outbox_delivery_lane", "outbox_delivery_lane_sent"}),
    "redeliver": Path(
        lambda _: Redelivery(database="default", ask=None).run(), DUE, {"outbox_delivery_unconfirmed"}
    ),
    "hold what is overdue": Path(
        lambda _: hold_overdue(), 0, {"outbox_delivery_unconfirmed", "outbox_delivery_pkey"}
    ),
    "look up copies": Path(look_up, None, {"outbox_delivery_pkey"}),
    "find suspects": Path(find_suspects, DUE, {"outbox_delivery_crashed"}),
    # The first of a lane, and a chunk of what no pause holds any more.
    "look after what is held": Path(
        lambda _: Housekeeping(database="default").release_held(), 1 + DUE, {"outbox_delivery_held"}
    ),
    "prune": Path(prune, DUE, {"outbox_event_pkey"}),
}


@pytest.mark.parametrize("name", PATHS)
def test_what_is_retained_costs_nothing(history: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.housekeeping.LANE_CHUNK", DUE)
    path = PATHS[name]
    dispatched = list(Delivery.objects.filter(status="dispatched").values_list("pk", flat=True)[:DUE])
    with explained() as plans:
        assert path.run(dispatched) == path.expected
    assert plans
    for plan in plans:
        check(plan)
    used = {node["Index Name"] for plan in plans for node in nodes(plan) if "Index Name" in node}
    assert path.indexes <= used, used


@pytest.mark.parametrize("sent", [False, True])
def test_a_lane_is_released_without_reading_it(history: None, sent: bool) -> None:
    lane = Delivery.objects.filter(handler="lane", key="busy")
    assert lane.count() == LANE
    if sent:
        lane.filter(pk=lane.latest("pk").pk).update(status="dispatched", held="")
    with explained() as plans:
        assert Delivery.objects.release_lanes([("lane", "busy")], skipping=[]) == (not sent)
    assert sum(map(pages, plans)) <= FEW_PAGES


def test_the_head_of_a_lane_is_claimed_without_reading_what_is_behind_it(history: None) -> None:
    lane = Delivery.objects.filter(handler="lane", key="busy")
    Delivery.objects.filter(status="pending", held="").update(available_at=Now() + timedelta(days=1))
    assert Delivery.objects.release_lanes([("lane", "busy")], skipping=[]) == 1
    with explained() as plans:
        claimed = claiming().take_lanes(skipping=[]).rows
    assert [row.delivery_id for row in claimed] == [lane.earliest("pk").pk]
    assert sum(map(pages, plans)) <= FEW_PAGES


def test_publishing_looks_nothing_up(history: None) -> None:
    with explained() as plans:
        publish()
    assert plans
    read = [node for plan in plans for node in nodes(plan) if "Relation Name" in node]
    assert {node["Node Type"] for node in read} == {"ModifyTable"}, read


def check(plan: dict[str, Any]) -> None:
    for node in nodes(plan):
        assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in TABLES, plan
    assert pages(plan) <= MOST_PAGES, plan
