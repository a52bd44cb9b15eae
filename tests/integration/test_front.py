"""A relay starts its looks where pending rows began; what turns up before that is found soon nevertheless."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from outbox.models import Delivery
from outbox.registry import Batching
from relay.claim import Claim
from relay.claim.front import LONGEST_S, Fronts, Position
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.conftest import database_url
from tests.helpers import publish, relay_all
from tests.listening import clear_broker
from tests.plans import explained, pages

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

HOUR = timedelta(hours=1)
BATCH = Batching(size=1, wait=HOUR)
DEAD = 5000
# Of all indexes, for one row.
FEW_PAGES = 100

# In the index no two neighbours are of one page, so that a walk touches a page for each.
_DYING = f"""
INSERT INTO outbox_delivery (event_id, handler, queue, available_at, held)
SELECT gen_random_uuid(), 'dead', 'dead',
       now() - interval '1 hour' + n * 7919 %% {DEAD} * interval '1 microsecond', held
FROM generate_series(1, %s) AS n, unnest(ARRAY['', 'batch']) AS each(held)
"""


@pytest.fixture(autouse=True)
def clean_broker() -> Iterator[None]:
    clear_broker()
    yield
    clear_broker()


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let looks from the very beginning be so dear that none follows the first."""
    monkeypatch.setattr("relay.claim.front.FREE_S", 0.0)
    monkeypatch.setattr("relay.claim.front.FULL_SHARE", 1e-9)
    monkeypatch.setattr("relay.claim.front.LONGEST_S", float("inf"))


@pytest.fixture
def dead_rows() -> Iterator[None]:
    """Leave dead rows in every index of what is pending, where an open transaction keeps them."""
    with psycopg.connect(database_url()) as other, connection.cursor() as cursor:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1 FROM outbox_delivery")
        cursor.execute(_DYING, [DEAD])
        cursor.execute("UPDATE outbox_delivery SET status = 'succeeded'")
        yield


def due(ago: timedelta, **fields: Any) -> int:
    """Publish an event that was due a while ago, and return its delivery."""
    delivery: Delivery = publish("flaky.x").deliveries.get()
    Delivery.objects.filter(pk=delivery.pk).update(available_at=Now() - ago, **fields)
    return delivery.pk


def taken(claim: Claim) -> tuple[list[int], int]:
    """Claim, and return what was claimed and how many pages that touched."""
    with transaction.atomic(), explained() as plans:
        rows = claim.take().rows
    return [row.delivery_id for row in rows], sum(map(pages, plans))


def test_a_claim_does_not_walk_past_the_dead_rows_again(dead_rows: None, rarely: None) -> None:
    first, second = due(HOUR / 2), due(HOUR / 3)
    claim = Claim(database="default", limit=1)
    found, walked = taken(claim)
    assert (found, walked > DEAD) == ([first], True), "no dead rows to walk past"
    found, walked = taken(claim)
    assert (found, walked < FEW_PAGES) == ([second], True), walked
    # Nothing is left, and that costs no walk either.
    assert [taken(claim)[1] < FEW_PAGES for _ in range(2)] == [True, True]


def test_a_look_ahead_does_not_walk_past_the_dead_rows_again(dead_rows: None, rarely: None) -> None:
    claim = Claim(database="default", limit=1)
    walks = []
    for _look in range(2):
        with transaction.atomic(), explained() as plans:
            assert claim.due_in({"dead": BATCH}) == float("inf")
        walks.append(sum(map(pages, plans)))
    assert walks[0] > 2 * DEAD
    assert walks[1] < FEW_PAGES


def test_a_batch_is_claimed_where_the_look_found_it(dead_rows: None, rarely: None) -> None:
    pk = due(HOUR / 2, held="batch", handler="dead")
    claim = Claim(database="default", limit=1)
    assert claim.ripe_in({"dead": BATCH})["dead"] <= 0
    with transaction.atomic(), explained() as plans:
        assert [row.delivery_id for row in claim.take_batch("dead", BATCH).rows] == [pk]
    assert sum(map(pages, plans)) < FEW_PAGES


def test_a_transaction_of_less_than_a_second_is_never_late(rarely: None) -> None:
    claim = Claim(database="default", limit=10)
    assert taken(claim)[0] == []
    late = due(timedelta(seconds=0.5))
    assert taken(claim)[0] == [late]


def test_what_a_drain_has_not_seen_from_the_front_it_finds_at_its_end(rarely: None) -> None:
    first, late = due(HOUR / 3), due(HOUR / 2, held="pause")
    take, claims = Claim.take, []

    def commit_late(self: Claim, **options: Any) -> Any:
        claims.append(found := take(self, **options))
        if len(claims) == 1:
            Delivery.objects.filter(pk=late).update(held="")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Claim, "take", commit_late)
        relay_all(batch_size=1)
    assert set(Delivery.objects.values_list("pk", "status")) == {(first, "dispatched"), (late, "dispatched")}


class Clock(Stop):
    """A clock that waits and statements turn; at a given time something happens."""

    LOOK_S = 0.04

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self.now = time.monotonic()
        self.happens, self.happened_at = happens, self.now + 5
        self.found_at = 0.0
        self.late = 0

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        self.now += timeout_s
        if self.now >= self.happened_at and not self.late:
            self.happened_at = self.now
            self.late = self.happens()
        if self.late and not Delivery.objects.pending().filter(pk=self.late).exists():
            self.found_at = self.now
        if self.found_at or self.now >= self.happened_at + 60:
            self.request()
        return False

    def monotonic(self) -> float:
        return self.now

    def slowly(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Run a statement; a look at what is pending takes time, as it does where dead rows pile up."""
        if "available_at" in sql:
            self.now += self.LOOK_S
        return execute(sql, *rest)


@contextmanager
def relaying_until_found(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> Iterator[Clock]:
    with Clock(happens) as clock:
        for module in ("relay.housekeeping", "relay.claim.front", "relay.wakeup"):
            monkeypatch.setattr(f"{module}.time", clock)
        relay = Relay(RelayOptions(database="default", listen=False), stop=clock)
        with connection.execute_wrapper(clock.slowly):
            relay.run()
        yield clock


def test_a_notification_of_late_rows_has_the_relay_look_from_the_beginning(
    rarely: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([False, True])

    def wait(wakeup: Wakeup, timeout_s: float, **_: Any) -> bool:
        """Commit late, first without a word of it; the next time with one; then end the relay."""
        wakeup.is_late = next(told, False)
        if not late:
            late.append(due(HOUR))
        elif not wakeup.is_late:
            stop.request()
        seen.append(status_of(late[0]))
        return True

    late: list[int] = []
    seen: list[str] = []
    monkeypatch.setattr("relay.claim.front.LATE_SHARE", 1.0)
    monkeypatch.setattr(Wakeup, "wait", wait)
    with Stop() as stop:
        Relay(RelayOptions(database="default"), stop=stop).run()
    assert seen == ["pending", "pending", "dispatched"]


def test_a_relay_waits_no_longer_than_until_a_look_from_the_beginning_may_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(wakeup: Wakeup, timeout_s: float, **_: Any) -> bool:
        waits.append(timeout_s)
        if len(waits) == 3:
            stop.request()
        return False

    waits: list[float] = []
    monkeypatch.setattr(Wakeup, "wait", wait)
    monkeypatch.setattr(Fronts, "hastened_in_s", lambda _: 0.003)
    with Stop() as stop:
        Relay(RelayOptions(database="default"), stop=stop).run()
    assert waits == [0.003] * 3


@pytest.mark.parametrize(("hastened_in_s", "calm_s"), [(inf, 0.02), (0.003, 0.003)])
def test_notifications_gather_for_each_row_that_was_found_but_not_past_the_next_look(
    monkeypatch: pytest.MonkeyPatch, hastened_in_s: float, calm_s: float
) -> None:
    def wait(wakeup: Wakeup, timeout_s: float, *, calm_until: float) -> bool:
        calms.append(calm_until)
        stop.request()
        return False

    calms: list[float] = []
    for _event in range(2):
        due(HOUR)
    monkeypatch.setattr(Wakeup, "wait", wait)
    monkeypatch.setattr(Fronts, "hastened_in_s", lambda _: hastened_in_s)
    monkeypatch.setattr("relay.loop.time", SimpleNamespace(monotonic=lambda: 1000.0))
    with Stop() as stop:
        Relay(RelayOptions(database="default"), stop=stop).run()
    assert calms == [pytest.approx(1000 + calm_s)]


def test_a_complete_look_ahead_tells_the_claims_where_to_start() -> None:
    claim = Claim(database="default", limit=1)
    due(HOUR)
    ahead, *claims = claim.fronts.due, claim.fronts.ordinary, claim.fronts.lanes
    for one in claims:
        one.position = Position(2**52)
    assert claim.due_in() <= 0
    assert [one.position for one in claims] == [ahead.position] * 2


def status_of(pk: int) -> str:
    """Return the state of a delivery."""
    return str(Delivery.objects.values_list("status", flat=True).get(pk=pk))


def test_a_late_commit_is_found_within_about_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    for _event in range(3):
        due(HOUR / 3)
    with relaying_until_found(monkeypatch, lambda: due(HOUR / 2)) as clock:
        assert 0 < clock.found_at - clock.happened_at <= 2


def test_a_stall_keeps_a_late_commit_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "LOOK_S", 60.0)

    waits: list[None] = []

    def commit_after_the_stall() -> int:
        waits.append(None)
        if len(waits) == 1:
            # The look ahead has not been slow yet.
            return 0
        monkeypatch.setattr(Clock, "LOOK_S", 0.04)
        return due(HOUR / 2)

    with relaying_until_found(monkeypatch, commit_after_the_stall) as clock:
        assert 0 < clock.found_at - clock.happened_at <= LONGEST_S + 2


def test_without_looks_from_the_beginning_a_late_commit_would_wait(
    rarely: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test before this one can fail."""
    due(HOUR / 3)
    with relaying_until_found(monkeypatch, lambda: due(HOUR / 2)) as clock:
        assert not clock.found_at


def test_what_another_relay_gives_back_is_found_by_the_next_full_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed, first = due(HOUR / 2), due(HOUR / 3)
    claim = Claim(database="default", limit=1)
    with psycopg.connect(database_url()) as other:
        other.execute("SELECT 1 FROM outbox_delivery WHERE id = %s FOR UPDATE", [passed])
        assert taken(claim)[0] == [first]
    claim.fronts.forget()
    assert taken(claim)[0] == [passed]


def test_a_relay_looks_everywhere_after_a_failure(rarely: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed and rolled back lies before the front."""
    from outbox.errors import BrokerUnavailable
    from relay.dispatch import Dispatcher

    due(HOUR)
    send, sends = Dispatcher.send, []

    def fail_once(self: Dispatcher, *args: Any, **options: Any) -> Any:
        sends.append(args)
        if len(sends) == 1:
            raise BrokerUnavailable("gone")
        return send(self, *args, **options)

    monkeypatch.setattr(Dispatcher, "send", fail_once)
    monkeypatch.setattr("relay.backoff.BASE_S", 0.0)
    relay_all()
    assert Delivery.objects.get().status == "dispatched"
