"""A background receiver that cannot publish: the refusal is logged, and the transaction may be ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction
from django.dispatch import Signal

import outbox
from outbox.errors import NotInTransaction, UnserializableArgument
from outbox.models import Event
from outbox.observability.telemetry import send_refused
from tests.support.receivers import background, ordinary
from tests.testapp.models import Customer
from tests.testapp.signals import order_status_changed

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def refused() -> Iterator[list[dict[str, Any]]]:
    with ordinary(send_refused) as sends:
        yield sends


def send_robust(signal: Signal, **named: Any) -> list[Any]:
    return [answer for _receiver, answer in signal.send_robust(None, **named)]


def asend_robust(signal: Signal, **named: Any) -> list[Any]:
    async def send() -> list[Any]:
        return [answer for _receiver, answer in await signal.asend_robust(None, **named)]

    return asyncio.run(send())


@pytest.mark.parametrize("send", [send_robust, asend_robust])
def test_a_refusal_hidden_by_a_robust_send_is_logged_as_an_error(
    send: Any, caplog: pytest.LogCaptureFixture, refused: list[dict[str, Any]]
) -> None:
    signal = Signal()
    with background(signal, name="refused"):
        answers = send(signal, using="default")
    assert NotInTransaction in map(type, answers)
    (record,) = [one for one in caplog.records if one.name == "outbox" and "refused" in one.getMessage()]
    assert record.levelno == logging.ERROR
    assert "transaction.atomic()" in record.getMessage()
    assert [one["handlers"] for one in refused] == [["refused"]]
    assert refused[0]["error"].startswith("NotInTransaction: ")


def test_a_refusal_is_logged_once_per_send_and_names_the_receivers(
    caplog: pytest.LogCaptureFixture, refused: list[dict[str, Any]]
) -> None:
    signal = Signal()
    with background(signal, name="first"), background(signal, name="second"), transaction.atomic():
        signal.send_robust(None, odd=object())
    assert [one["handlers"] for one in refused] == [["first", "second"]]
    assert len([one for one in caplog.records if one.name == "outbox"]) == 1


def test_the_error_of_a_condition_is_a_refusal(refused: list[dict[str, Any]]) -> None:
    def fail(**kwargs: Any) -> bool:
        raise ZeroDivisionError

    signal = Signal()
    with background(signal, when=fail), transaction.atomic():
        assert list(map(type, send_robust(signal))) == [ZeroDivisionError]
    assert [one["error"].partition(":")[0] for one in refused] == ["ZeroDivisionError"]


def test_without_strict_sends_the_rows_commit_without_the_event() -> None:
    signal = Signal()
    with background(signal), transaction.atomic():
        Customer.objects.create(name="Ada")
        signal.send_robust(None, odd=object())
    assert (Customer.objects.count(), Event.objects.count()) == (1, 0)


@pytest.mark.parametrize("send", [send_robust, lambda signal, **named: signal.send(None, **named)])
def test_with_strict_sends_no_row_commits_without_the_event(settings: Any, send: Any) -> None:
    settings.OUTBOX = {"STRICT_SENDS": True}
    signal = Signal()
    with background(signal), transaction.atomic():
        Customer.objects.create(name="Ada")
        try:
            send(signal, odd=object())
        except UnserializableArgument:
            logging.getLogger(__name__).debug("swallowed")
    assert (Customer.objects.count(), Event.objects.count()) == (0, 0)


def test_strict_sends_limit_the_rollback_to_the_savepoint_of_the_send(settings: Any) -> None:
    settings.OUTBOX = {"STRICT_SENDS": True}
    signal = Signal()
    with background(signal), transaction.atomic():
        Customer.objects.create(name="kept")
        with transaction.atomic():
            Customer.objects.create(name="lost")
            signal.send_robust(None, odd=object())
        assert [one.name for one in Customer.objects.all()] == ["kept"]
    assert Customer.objects.get().name == "kept"


def test_with_strict_sends_a_refusal_outside_a_transaction_is_only_logged(
    settings: Any, refused: list[dict[str, Any]]
) -> None:
    settings.OUTBOX = {"STRICT_SENDS": True}
    signal = Signal()
    with background(signal):
        assert list(map(type, send_robust(signal))) == [NotInTransaction]
    assert [one["error"].partition(":")[0] for one in refused] == ["NotInTransaction"]


@pytest.mark.parametrize("method", ["send", "send_robust"])
def test_durable_signals_raise_their_refusal(method: str) -> None:
    cases = ((order_status_changed, {"order": object()}), (outbox.bulk_created, {"instances": [object()]}))
    for signal, named in cases:
        with background(signal), transaction.atomic(), pytest.raises(UnserializableArgument):
            getattr(signal, method)(Customer, **named)
