"""A relay scans from the position where pending rows began, and finds rows before that position soon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.registry import BatchOptions
from relay.claim import Claim, ScanCursors
from relay.claim.scan_cursor import MAX_PAUSE_S, Position, ScanCursor
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.conftest import database_url
from tests.support.data_flow import clear_broker, publish, relay_all
from tests.support.query_plans import explained, pages

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

HOUR = timedelta(hours=1)
BATCH = BatchOptions(size=1, wait=HOUR)
DEAD = 5000
# Pages of all indexes that are read to find one row.
FEW_PAGES = 100

# Neighbours in the index are on different pages of the table, so that a scan reads one page for each row.
_DYING = f"""
INSERT INTO outbox_delivery (event_id, handler, queue, available_at, waits_for)
SELECT gen_random_uuid(), 'dead', 'dead',
       now() - interval '1 hour' + n * 7919 %% {DEAD} * interval '1 microsecond', waits_for
FROM generate_series(1, %s) AS n, unnest(ARRAY['', 'batch']) AS each(waits_for)
"""


class SlowFirstScan:
    """A clock that stands still, except that the first scan takes `first_s`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.first_s = 60.0

    def __call__(self) -> float:
        return self.now

    def execute(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Run a statement; the first scan takes its time."""
        if _is_scan(sql):
            self.now += self.first_s
            self.first_s = 0.0
        return execute(sql, *rest)


def _is_scan(sql: str) -> bool:
    return "outbox_delivery" in sql and ("due_at" in sql or "EXECUTE" in sql)


@pytest.fixture(autouse=True)
def clean_broker() -> Iterator[None]:
    clear_broker()
    yield
    clear_broker()


@pytest.fixture
def one_full_scan() -> Iterator[SlowFirstScan]:
    """Return a clock by which no full scan becomes due after the first one."""
    clock = SlowFirstScan()
    with connection.execute_wrapper(clock.execute):
        yield clock


@pytest.fixture
def dead_rows() -> Iterator[None]:
    """Leave dead rows in every index of pending rows; an open transaction keeps them from vacuum."""
    with psycopg.connect(database_url()) as other, connection.cursor() as cursor:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1 FROM outbox_delivery")
        cursor.execute(_DYING, [DEAD])
        cursor.execute("UPDATE outbox_delivery SET state = 'succeeded'")
        yield


def due(ago: timedelta, **fields: Any) -> int:
    """Publish an event that has been due for some time, and return the id of its delivery."""
    delivery: Delivery = publish("flaky.x").deliveries.get()
    Delivery.objects.filter(pk=delivery.pk).update(available_at=Now() - ago, **fields)
    return delivery.pk


def claiming(clock: Callable[[], float], limit: int = 1) -> Claim:
    return Claim(database="default", limit=limit, cursors=ScanCursors(clock=clock))


def claimed(claim: Claim) -> tuple[list[int], int]:
    """Claim; return the claimed deliveries and the number of pages that were read."""
    with transaction.atomic(), explained() as plans:
        rows = claim.claim_due().rows
    return [row.delivery_id for row in rows], sum(map(pages, plans))


# ---------------------------------------------------------------- scans from the position


def test_a_claim_does_not_read_dead_rows_again(dead_rows: None, one_full_scan: SlowFirstScan) -> None:
    first, second = due(HOUR / 2), due(HOUR / 3)
    claim = claiming(one_full_scan)
    found, read = claimed(claim)
    assert (found, read > DEAD) == ([first], True), "there were no dead rows"
    found, read = claimed(claim)
    assert (found, read < FEW_PAGES) == ([second], True), read
    # Claims that find nothing are as cheap.
    assert [claimed(claim)[1] < FEW_PAGES for _ in range(2)] == [True, True]


def test_a_check_does_not_read_dead_rows_again(dead_rows: None, one_full_scan: SlowFirstScan) -> None:
    claim = claiming(one_full_scan)
    read = []
    for _check in range(2):
        with transaction.atomic(), explained() as plans:
            assert claim.due_in({"dead": BATCH}) == inf
        read.append(sum(map(pages, plans)))
    assert read[0] > 2 * DEAD
    assert read[1] < FEW_PAGES


def test_a_batch_is_claimed_at_the_position_that_the_check_found(
    dead_rows: None, one_full_scan: SlowFirstScan
) -> None:
    pk = due(HOUR / 2, waits_for="batch", handler="dead")
    claim = claiming(one_full_scan)
    assert claim.ready_in({"dead": BATCH})["dead"] <= 0
    with transaction.atomic(), explained() as plans:
        assert [row.delivery_id for row in claim.claim_batch("dead", BATCH).rows] == [pk]
    assert sum(map(pages, plans)) < FEW_PAGES


def test_a_full_check_moves_the_cursors_of_claims() -> None:
    claim = Claim(database="default", limit=1)
    pk = due(HOUR)
    cursors = (claim.cursors.keyless, claim.cursors.ordered)
    for cursor in cursors:
        cursor.position = Position(2**52)
    assert claim.due_in() <= 0
    assert [cursor.position.id for cursor in cursors] == [pk, pk]
    assert cursors[0].position == cursors[1].position


# ---------------------------------------------------------------- late rows


def test_the_rows_of_a_transaction_of_less_than_a_second_are_never_late(one_full_scan: SlowFirstScan) -> None:
    claim = claiming(one_full_scan, limit=10)
    assert claimed(claim)[0] == []
    late = due(timedelta(seconds=0.5))
    assert claimed(claim)[0] == [late]


def test_a_drain_finds_late_rows_with_a_full_scan_at_its_end(
    one_full_scan: SlowFirstScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = due(HOUR / 3), due(HOUR / 2, waits_for="resume")
    claim_due, claims = Claim.claim_due, []

    def commit_late(self: Claim, **options: Any) -> Any:
        claims.append(result := claim_due(self, **options))
        if len(claims) == 1:
            Delivery.objects.filter(pk=late).update(waits_for="")
        return result

    monkeypatch.setattr(Claim, "claim_due", commit_late)
    relay_all(batch_size=1, clock=one_full_scan)
    assert set(Delivery.objects.values_list("pk", "state")) == {(first, "dispatched"), (late, "dispatched")}


def test_rows_that_another_relay_returns_to_pending_are_found_by_the_next_full_scan(
    one_full_scan: SlowFirstScan,
) -> None:
    returned, first = due(HOUR / 2), due(HOUR / 3)
    claim = claiming(one_full_scan)
    with psycopg.connect(database_url()) as other:
        other.execute("SELECT 1 FROM outbox_delivery WHERE id = %s FOR UPDATE", [returned])
        assert claimed(claim)[0] == [first]
    assert claimed(claim)[0] == []
    claim.cursors.reset()
    assert claimed(claim)[0] == [returned]


def test_a_relay_makes_a_full_scan_after_a_failure(
    one_full_scan: SlowFirstScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a claim that was rolled back are before the position."""
    due(HOUR)
    send, sends = Dispatcher.send, []

    def fail_once(self: Dispatcher, *args: Any, **options: Any) -> Any:
        sends.append(args)
        if len(sends) == 1:
            raise BrokerUnavailable("gone")
        return send(self, *args, **options)

    monkeypatch.setattr(Dispatcher, "send", fail_once)
    # A drain would end with a full scan in any case.
    relay_all(drain=False, once=True, clock=one_full_scan)
    assert Delivery.objects.get().state == "dispatched"


def test_a_notification_of_a_late_commit_makes_the_relay_scan_in_full(
    one_full_scan: SlowFirstScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified_late = iter([False, True])

    def wait(wakeup: Wakeup, timeout_s: float, **_: Any) -> bool:
        """Commit late without a notification; the next time notify; then end the relay."""
        wakeup.is_late = next(notified_late, False)
        # Longer than the pause after a notification, and shorter than the pause without one.
        one_full_scan.now += 0.3
        if not late:
            late.append(due(HOUR))
        elif not wakeup.is_late:
            stop.request()
        seen.append(state_of(late[0]))
        return True

    late: list[int] = []
    seen: list[str] = []
    one_full_scan.first_s = 0.2
    monkeypatch.setattr(Wakeup, "wait", wait)
    with Stop() as stop:
        Relay(RelayOptions(database="default", maintain_beside=False, clock=one_full_scan), stop=stop).run()
    assert seen == ["pending", "pending", "dispatched"]


# ---------------------------------------------------------------- waits


def test_a_relay_waits_no_longer_than_until_a_requested_full_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(wakeup: Wakeup, timeout_s: float, **_: Any) -> bool:
        waits.append(timeout_s)
        if len(waits) == 3:
            stop.request()
        return False

    waits: list[float] = []
    monkeypatch.setattr(Wakeup, "wait", wait)
    monkeypatch.setattr(ScanCursors, "requested_in_s", lambda _: 0.003)
    with Stop() as stop:
        Relay(RelayOptions(database="default"), stop=stop).run()
    assert waits == [0.003] * 3


@pytest.mark.parametrize(("requested_in_s", "coalesced_s"), [(inf, 0.02), (0.003, 0.003)])
def test_notifications_coalesce_as_long_as_the_dispatch_took_but_not_past_the_next_check(
    monkeypatch: pytest.MonkeyPatch, requested_in_s: float, coalesced_s: float
) -> None:
    def wait(wakeup: Wakeup, timeout_s: float, *, coalesce_until: float) -> bool:
        ends.append(coalesce_until)
        stop.request()
        return False

    def send(dispatcher: Dispatcher, *args: Any, **options: Any) -> Any:
        now[0] += 0.02
        return sent(dispatcher, *args, **options)

    now, sent, ends = [1000.0], Dispatcher.send, list[float]()
    due(HOUR)
    monkeypatch.setattr(Dispatcher, "send", send)
    monkeypatch.setattr(Wakeup, "wait", wait)
    monkeypatch.setattr(ScanCursors, "requested_in_s", lambda _: requested_in_s)
    with Stop() as stop:
        options = RelayOptions(database="default", maintain_beside=False, clock=lambda: now[0])
        Relay(options, stop=stop).run()
    assert ends == [pytest.approx(now[0] + coalesced_s)]


# ---------------------------------------------------------------- the time until a late commit is found


class LateCommit(Stop):
    """A clock that waits and scans advance; after five seconds a transaction commits late."""

    # As long as a scan takes that reads many dead rows.
    scan_s = 0.04

    def __init__(self, commit: Callable[[], int]) -> None:
        super().__init__()
        self.now = time.monotonic()
        self.commit, self.committed_at = commit, self.now + 5
        self.found_at = 0.0
        self.late = 0

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        self.now += timeout_s
        if self.now >= self.committed_at and not self.late:
            self.committed_at = self.now
            self.late = self.commit()
        if self.late and not Delivery.objects.pending().filter(pk=self.late).exists():
            self.found_at = self.now
        if self.found_at or self.now >= self.committed_at + 60:
            self.request()
        return False

    def monotonic(self) -> float:
        return self.now

    def execute(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Run a statement; a scan takes its time."""
        if _is_scan(sql):
            self.now += self.scan_s
        return execute(sql, *rest)


@contextmanager
def relaying_until_found(commit: Callable[[], int]) -> Iterator[LateCommit]:
    """Run a relay until it dispatches the delivery of a late commit, or for a minute after the commit."""
    with LateCommit(commit) as clock:
        options = RelayOptions(database="default", listen=False, maintain_beside=False, clock=clock.monotonic)
        with connection.execute_wrapper(clock.execute):
            Relay(options, stop=clock).run()
        yield clock


def state_of(pk: int) -> str:
    """Return the state of a delivery."""
    return str(Delivery.objects.values_list("state", flat=True).get(pk=pk))


def test_a_late_commit_is_found_within_about_a_poll() -> None:
    for _event in range(3):
        due(HOUR / 3)
    with relaying_until_found(lambda: due(HOUR / 2)) as clock:
        assert 0 < clock.found_at - clock.committed_at <= 2


def test_a_stall_delays_a_late_commit_by_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LateCommit, "scan_s", 60.0)
    waits: list[None] = []

    def commit_after_the_stall() -> int:
        waits.append(None)
        if len(waits) == 1:
            # The check has not been slow yet.
            return 0
        monkeypatch.setattr(LateCommit, "scan_s", 0.04)
        return due(HOUR / 2)

    with relaying_until_found(commit_after_the_stall) as clock:
        assert 0 < clock.found_at - clock.committed_at <= MAX_PAUSE_S + 2


def test_without_full_scans_a_late_commit_would_not_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests before this one can fail."""
    monkeypatch.setattr(ScanCursor, "start_position", lambda cursor, **_: cursor.position)
    due(HOUR / 3)
    with relaying_until_found(lambda: due(HOUR / 2)) as clock:
        assert not clock.found_at
