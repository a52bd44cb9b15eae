"""The log of an outage: once with its cause, once with its end, both at one level."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from relay.outage_log import OutageLog


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def outage(clock: SimpleNamespace) -> OutageLog:
    return OutageLog(
        logging.getLogger("relay.test"),
        "default",
        complaint="%r is away: %s",
        recovery="%r is back after %.1f s",
        clock=lambda: clock.now,
    )


def test_an_outage_is_logged_once_and_its_end_once(
    outage: OutageLog, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        outage.note_failure("no route", shown="mail: no route")
        clock.now += 2
    assert outage.cause == "no route"
    for _ in range(2):
        outage.note_success()
    assert caplog.messages == ["'default' is away: mail: no route", "'default' is back after 6.0 s"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert [vars(record).get("error") for record in caplog.records] == ["no route", None]


def test_another_cause_belongs_to_the_same_outage(
    outage: OutageLog, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    outage.note_failure("no route")
    clock.now = 3.0
    outage.note_failure("refused")
    clock.now = 5.0
    outage.note_success()
    assert caplog.messages[-2:] == ["'default' is away: refused", "'default' is back after 5.0 s"]


def test_a_success_without_an_outage_is_not_logged(
    outage: OutageLog, caplog: pytest.LogCaptureFixture
) -> None:
    outage.note_success()
    assert caplog.messages == []
