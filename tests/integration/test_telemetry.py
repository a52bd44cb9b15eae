"""The telemetry signals: when they are sent, with which fields, and their cost without receivers."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models.functions import Now
from django.dispatch import Signal

import outbox
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event
from outbox.observability import telemetry
from outbox.registry import registry
from relay.loop import Relay
from relay.maintenance import Maintenance
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.conftest import ROOT
from tests.support.data_flow import (
    clear_broker,
    finish,
    finish_with_retries,
    flush,
    publish,
    relay_all,
    worker,
)
from tests.support.signals import sent
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

SIGNALS: dict[str, Signal] = {name: getattr(telemetry, name) for name in telemetry.FIELDS}

# Signals for which this package has no receiver, neither for the log nor for anything else.
SILENT = (
    "event_published",
    "batch_claimed",
    "delivery_dispatched",
    "delivery_started",
    "delivery_succeeded",
    "delivery_retried",
    "delivery_discarded",
    "delivery_redelivered",
)


@pytest.fixture(autouse=True)
def empty_broker() -> Iterator[None]:
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture
def seen() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Collect the sends of all signals, by name, and check the fields of each."""
    with ExitStack() as stack:
        found = {name: stack.enter_context(sent(signal)) for name, signal in SIGNALS.items()}
        yield found
    for name, sends in found.items():
        for one in sends:
            assert one.keys() == set(telemetry.FIELDS[name]), name


def only(sends: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = sends
    return found


def test_the_list_of_fields_names_every_signal() -> None:
    declared = {name for name, value in vars(telemetry).items() if isinstance(value, Signal)}
    assert telemetry.FIELDS.keys() == declared


def test_each_field_is_described_once() -> None:
    fields = {field for fields in telemetry.FIELDS.values() for field in fields}
    described = (telemetry.__doc__ or "").partition("log records:")[2]
    names = Counter(name for line in described.splitlines() for name in line[:14].replace(",", " ").split())
    assert fields <= names.keys()
    page = (ROOT / "docs/reference/telemetry.md").read_text()
    for name in (*telemetry.FIELDS, *fields):
        assert f"`{name}`" in page, name


def test_a_delivery_is_followed_from_its_publish_to_its_success(seen: dict[str, list[Any]]) -> None:
    with worker():
        event = publish("test.recorded", key="order-7")
        relay_all()
        finish(event)
        flush()
    delivery = event.deliveries.get(handler="record")
    event_id = str(event.pk)
    published = only(seen["event_published"])
    assert published == {
        "database": "default",
        "event_id": event_id,
        "topic": "test.recorded",
        "key": "order-7",
        "handlers": ["record", "record_all"],
    }
    counts = {"record": 1, "record_all": 1}
    assert only(seen["batch_claimed"]) == {"database": "default", "counts": counts}
    assert only(seen["batch_dispatched"])["counts"] == counts
    of_record = {
        name: dict(only([one for one in seen[name] if one["handler"] == "record"]))
        for name in ("delivery_dispatched", "delivery_started", "delivery_succeeded")
    }
    identity = {
        "database": "default",
        "delivery_id": delivery.pk,
        "event_id": event_id,
        "handler": "record",
    }
    about = {**identity, "topic": "test.recorded", "key": "order-7"}
    assert of_record["delivery_dispatched"] == {**about, "queue": QUEUE, "attempt": 1}
    assert of_record["delivery_started"] == about
    assert of_record["delivery_succeeded"].pop("duration_s") > 0
    assert of_record["delivery_succeeded"] == identity
    for name in ("relay", "worker"):
        assert only(seen[f"{name}_started"])["version"] == outbox.__version__
        assert len(seen[f"{name}_stopped"]) == 1
    assert only(seen["worker_started"])["threads"] == 4


def test_a_retry_and_a_failure_are_told_apart(seen: dict[str, list[Any]]) -> None:
    with worker():
        event = publish("broken.mail")
        finish_with_retries(event)
        flush()
    pk = event.deliveries.get().pk
    retried, failed = only(seen["delivery_retried"]), only(seen["delivery_failed"])
    assert (retried["delivery_id"], failed["delivery_id"]) == (pk, pk)
    assert "Refused" in retried["error"]
    assert "Refused" in failed["error"]
    assert seen["delivery_succeeded"] == []


@pytest.fixture
def transactional() -> Iterator[list[Any]]:
    """Declare a transactional handler."""
    outbox.handler("settled.*", name="settled", queue_name=QUEUE, transactional=True)(lambda event: None)
    yield []
    registry.remove("settled")


def test_a_transactional_success_is_sent_although_no_flush_writes_it(
    transactional: None, seen: dict[str, list[Any]]
) -> None:
    with worker():
        event = publish("settled.x")
        relay_all()
        finish(event)
        flush()
    assert only(seen["delivery_succeeded"])["handler"] == "settled"


def test_nothing_is_sent_for_an_event_that_is_rolled_back_or_published_before(
    seen: dict[str, list[Any]],
) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        outbox.publish("test.recorded")
        outbox.publish_many([{"topic": "test.recorded"}])
        raise ZeroDivisionError
    assert seen["event_published"] == []
    ids = []
    for _again in range(2):
        with transaction.atomic():
            ids.append(outbox.publish("other.x", dedup_key="once").pk)
            many = outbox.publish_many([{"topic": "other.y"}, {"topic": "other.z"}])
            ids += [event.pk for event in many]
            assert seen["event_published"] == [] or _again
    assert [UUID(one["event_id"]) for one in seen["event_published"]] == list(dict.fromkeys(ids))


def test_redelivered_and_never_confirmed_deliveries_are_named(
    seen: dict[str, list[Any]], settings: Any
) -> None:
    settings.OUTBOX = {"MAX_REDELIVERIES": 1}
    event = publish("flaky.mail")
    relay_all()
    pk = event.deliveries.get().pk
    for _round in range(2):
        Delivery.objects.update(state="dispatched", confirm_by=Now() - timedelta(seconds=1))
        Maintenance(database="default").redeliver()
    redelivered = only(seen["delivery_redelivered"])
    assert redelivered == {
        "database": "default",
        "delivery_id": pk,
        "event_id": str(event.pk),
        "handler": "flaky",
    }
    failed = only(seen["delivery_failed"])
    assert failed["delivery_id"] == pk
    assert failed["error"].startswith("never confirmed: 2 dispatches")
    assert [(one["redelivered"], one["failed"]) for one in seen["deliveries_overdue"]] == [(1, 0), (0, 1)]


def test_an_expired_delivery_is_discarded_with_the_reason(seen: dict[str, list[Any]]) -> None:
    event = publish("flaky.mail", expires=timedelta(hours=1))
    Delivery.objects.update(expires_at=Now() - timedelta(seconds=1))
    relay_all()
    found = only(seen["delivery_discarded"])
    assert found["delivery_id"] == event.deliveries.get().pk
    assert found["error"] == "expired before it was dispatched"


# ---------------------------------------------------------------- the log


def test_log_records_have_the_fields_of_their_signal_and_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with sent(telemetry.delivery_failed) as failures, caplog.at_level(logging.DEBUG, "outbox"), worker():
        event = publish("broken.mail")
        finish_with_retries(event)
        flush()
    by_signal = {getattr(record, "signal", ""): record for record in caplog.records}
    for name in ("batch_dispatched", "delivery_failed", "relay_started", "relay_stopped", "worker_started"):
        for field in telemetry.FIELDS[name]:
            assert hasattr(by_signal[name], field), (name, field)
    record = by_signal["delivery_failed"]
    assert {field: getattr(record, field) for field in only(failures)} == failures[0]
    assert record.getMessage() == (
        f"delivery {failures[0]['delivery_id']} to broken has failed: "
        f"{failures[0]['error'].strip().splitlines()[-1]}"
    )
    json.dumps({field: getattr(record, field) for field in telemetry.FIELDS["delivery_failed"]})


# ---------------------------------------------------------------- without receivers


def test_no_signal_of_single_deliveries_has_a_receiver_of_this_package() -> None:
    assert [name for name in SILENT if SIGNALS[name].receivers] == []


def test_nothing_is_sent_or_built_for_signals_without_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    sends: Counter[str] = Counter()
    real = Signal.send_robust

    def count(self: Signal, *args: Any, **kwargs: Any) -> Any:
        sends.update(name for name, signal in SIGNALS.items() if signal is self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Signal, "send_robust", count)
    with transaction.atomic():
        events = outbox.publish_many({"topic": "test.recorded", "payload": n} for n in range(20))
    with worker():
        relay_all()
        for event in events:
            finish(event)
        flush()
    assert Event.objects.count() == 20
    assert {name: sends[name] for name in SILENT} == dict.fromkeys(SILENT, 0)
    assert sends["batch_dispatched"] >= 1


def test_a_relay_that_ends_with_an_error_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> Callable[..., Any]:
        raise ZeroDivisionError

    monkeypatch.setattr("relay.rounds.Rounds.dispatch_due", fail)
    with sent(telemetry.relay_stopped) as stopped, Stop() as stop, pytest.raises(ZeroDivisionError):
        Relay(RelayOptions(database="default", drain=True), stop=stop).run()
    assert only(stopped)["database"] == "default"
    confirmations.close()
