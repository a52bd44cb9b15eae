"""Deliveries that cannot be dispatched: their age, and the reason in status, log and heartbeat."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import dramatiq
import pytest
from django.core.management import CommandError, call_command
from django.db.models import F
from django.db.models.functions import Now

import outbox
from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery, ProcessHeartbeat
from outbox.operations.health import get_health
from outbox.operations.health_report import Problem, ProblemKind
from outbox.registry import registry
from outbox.run import RecordedRetry, Run
from relay.claimed_delivery import ClaimedDelivery
from relay.maintenance import Maintenance
from relay.put_off import MARGIN_S, PutOffReasons
from relay.wakeup import Wakeup
from tests.support.data_flow import clear_broker, flush, publish, relay_all
from tests.support.factories import make_delivery, make_relay
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def empty_broker() -> Iterator[None]:
    clear_broker()
    yield
    clear_broker()


@pytest.fixture
def renamed() -> Iterator[Delivery]:
    """Publish an event to a handler that no process declares any more, an hour ago."""
    outbox.handler("renamed.*", name="shop.mail_receipt", queue_name=QUEUE)(lambda event: None)
    delivery: Delivery = publish("renamed.x").deliveries.get()
    registry.remove("shop.mail_receipt")
    Delivery.objects.update(available_at=Now() - HOUR)
    outbox.handler("current.*", name="shop.mail_receipts", queue_name=QUEUE)(lambda event: None)
    yield delivery
    registry.remove("shop.mail_receipts")


def status(*args: str) -> dict[str, Any]:
    out = StringIO()
    call_command("outbox_status", "--format", "json", *args, stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def put_off(kind: ProblemKind) -> Problem:
    (found,) = [one for one in get_health().problems if one.kind == kind]
    return found


def make_due() -> None:
    """End the delays of pending deliveries, so that the relay claims them again."""
    Delivery.objects.pending().update(available_at=Now())


def test_the_age_of_a_delivery_that_is_put_off_counts_from_its_first_due_time(renamed: Delivery) -> None:
    for _round in range(3):
        relay_all()
        renamed.refresh_from_db()
        assert renamed.state == "pending"
        figures = get_health().figures
        assert (figures.due, figures.put_off, figures.scheduled) == (0, 1, 0)
        assert 3600 <= figures.oldest_due_s < 4000
        make_due()
    with pytest.raises(CommandError, match="the oldest due delivery has waited"):
        status("--max-lag", "60")


def test_the_status_names_an_unknown_handler_and_a_similar_one(renamed: Delivery) -> None:
    relay_all()
    problem = put_off(ProblemKind.UNKNOWN_HANDLER)
    assert problem.cause == (
        "1 delivery waits for handler 'shop.mail_receipt', which no code declares; "
        "did you mean 'shop.mail_receipts'?"
    )
    assert (problem.subject, problem.count) == ("shop.mail_receipt", 1)
    assert problem.age_s is not None
    assert problem.age_s >= 3600


def test_each_unknown_handler_is_counted(renamed: Delivery) -> None:
    for number, handler in enumerate(["shop.other", "shop.mail_receipt", "shop.mail_receipt"]):
        make_delivery(handler=handler, due_since=Now() - number * HOUR, available_at=Now() + HOUR)
    relay_all()
    problems = get_health().problems
    counts = {one.subject: one.count for one in problems if one.kind == ProblemKind.UNKNOWN_HANDLER}
    assert counts == {"shop.mail_receipt": 3, "shop.other": 1}


class Unreachable:
    """The client of a broker that cannot be reached."""

    def ping(self) -> None:
        raise ConnectionError("no route")


@pytest.fixture
def second_broker() -> Iterator[dramatiq.Broker]:
    """Declare a handler on a broker that cannot be reached."""
    broker = dramatiq.brokers.stub.StubBroker(middleware=[])
    broker.client = Unreachable()
    outbox.handler("away.*", name="away", broker=broker, queue_name="away")(lambda event: None)
    yield broker
    registry.remove("away")


def test_an_unreachable_second_broker_is_named_in_status_heartbeat_and_log(
    second_broker: dramatiq.Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeats: list[Any] = []
    beat = Maintenance.beat

    def beat_and_read(self: Maintenance) -> None:
        beat(self)
        heartbeats.extend(ProcessHeartbeat.objects.values_list("problems", flat=True))

    monkeypatch.setattr(Maintenance, "beat", beat_and_read)
    publish("away.x")
    Delivery.objects.update(available_at=Now() - HOUR)
    with caplog.at_level(logging.WARNING, "outbox"):
        relay_all()
    reason = "the broker is away: ConnectionError: no route"
    assert put_off(ProblemKind.PUT_OFF).cause == f"1 delivery waits for handler 'away': {reason}"
    assert get_health().figures.oldest_due_s >= 3600
    assert [{"kind": "put_off", "cause": reason}] in heartbeats
    (record,) = [one for one in caplog.records if reason in one.getMessage()]
    assert (record.database, record.counts) == ("default", {"away": 1})


def test_the_heartbeat_of_a_relay_that_cannot_listen_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"kind": "relay_polls", "cause": "a pooler shares the sessions"}
    monkeypatch.setattr(Wakeup, "problems", lambda _self: [problem])
    seen: list[Any] = []
    beat = Maintenance.beat

    def beat_and_read(self: Maintenance) -> None:
        beat(self)
        seen.append(get_health().problems)

    monkeypatch.setattr(Maintenance, "beat", beat_and_read)
    relay_all()
    (polling,) = [one for one in seen[0] if one.kind == ProblemKind.RELAY_POLLS]
    assert polling.cause.endswith("polls, as it cannot LISTEN: a pooler shares the sessions")


def test_a_reason_is_reported_once_until_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    reasons = PutOffReasons(database="default", clock=lambda: now)
    row: Any = make_claimed("mail")
    delay = timedelta(seconds=30)
    with caplog.at_level(logging.WARNING, "outbox"):
        for _round in range(3):
            reasons.note([(row, "no route", delay), (row, "no route", delay), (row, "the rest", timedelta())])
            now += 30
    assert reasons.current() == ["no route"]
    assert caplog.text.count("put off until the cause is gone: no route") == 1
    assert "the rest" not in caplog.text
    now += MARGIN_S
    assert reasons.current() == []


def make_claimed(handler: str) -> Any:
    return ClaimedDelivery(1, "", handler, "", "", 1, 0, 0, "", "", "", "")


# ---------------------------------------------------------------- outcomes


@pytest.fixture
def dispatched() -> Delivery:
    delivery = make_delivery(state="dispatched", available_at=Now() - HOUR, dispatched_at=Now())
    make_relay()
    return delivery


def run_of(delivery: Delivery) -> Run:
    event = outbox.ReceivedEvent(id=delivery.event_id, topic="x")
    return Run("default", delivery.handler, "m", [delivery.ref], [event])


def report(*outcomes: Outcome) -> None:
    confirmations.add(*outcomes)
    flush()


def test_a_delivery_that_a_worker_could_not_start_keeps_its_age(dispatched: Delivery) -> None:
    report(*Outcome.not_started(run_of(dispatched), "an older worker", timedelta(seconds=30)))
    assert get_health().figures.oldest_due_s >= 3600
    Delivery.objects.filter(pk=dispatched.pk).mark_dispatched(HOUR)
    report(*Outcome.not_started(run_of(dispatched), "an older worker", timedelta(seconds=30)))
    assert 3600 <= get_health().figures.oldest_due_s < 4000


def test_a_retry_starts_a_new_age(dispatched: Delivery) -> None:
    Delivery.objects.update(due_since=F("available_at"))
    retry = RecordedRetry(timedelta(seconds=30), "{}")
    report(*Outcome.retried(run_of(dispatched), "ValueError", retry, timedelta()))
    assert get_health().figures.oldest_due_s == 0.0
    dispatched.refresh_from_db()
    assert dispatched.due_since is None


def test_an_operators_retry_and_the_end_of_a_wait_start_a_new_age() -> None:
    for waits_for, state in (("", "failed"), ("resume", "pending")):
        make_delivery(state=state, waits_for=waits_for, due_since=Now() - HOUR)
    Delivery.objects.retry()
    Delivery.objects.filter(waits_for="resume").end_wait()
    assert not Delivery.objects.filter(due_since__isnull=False).exists()


def test_the_end_of_a_wait_for_an_ordering_key_starts_a_new_age() -> None:
    make_delivery(key="k", waits_for="key", due_since=Now() - HOUR)
    assert Delivery.objects.unblock_keys([("tests.mail", "k")], skipping=[]) == 1
    assert Delivery.objects.get().due_since is None
