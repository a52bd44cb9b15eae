"""Errors of the database that are no defects: an outage waits, and a conflict is tried again at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import OperationalError, connection
from psycopg.errors import SerializationFailure

from relay.backoff import Backoff
from relay.loop import MAX_CONFLICTS, Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import publish

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@contextmanager
def read_only() -> Iterator[None]:
    """Refuse writes of this session, as a hot standby does."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")


def stopped_by_an_outage(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Relay, Stop]:
    """Return a relay, and the list of the outages that it will report; the first outage stops it."""
    stop = Stop()
    relay = Relay(
        RelayOptions(database="default", listen=False), stop=stop, outage=Backoff(base_s=0.001, cap_s=0.001)
    )
    outages: list[str] = []
    report = relay._report_state

    def reported(state: str, detail: str = "") -> None:
        report(state, detail)
        if state != "running":
            outages.append(state)
            stop.request()

    monkeypatch.setattr(relay, "_report_state", reported)
    return outages, relay, stop


def test_a_read_only_server_is_an_outage_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outages, relay, stop = stopped_by_an_outage(monkeypatch)
    with stop, read_only():
        relay.run()
    assert outages == ["database away"]
    assert not [record for record in caplog.records if record.exc_info]


class Conflicts:
    """Makes the next claims fail with a serialization failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, relay: Relay, count: int) -> None:
        self.left = count
        self._dispatch_due = relay._rounds.dispatch_due
        monkeypatch.setattr(relay._rounds, "dispatch_due", self.dispatch_due)

    def dispatch_due(self) -> int:
        if self.left:
            self.left -= 1
            raise OperationalError("could not serialize access") from SerializationFailure()
        return self._dispatch_due()


def test_a_serialization_failure_is_tried_again_quietly_and_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    event = publish("test.recorded")
    with Stop() as stop:
        # A wait after the first failure would exceed the time limit of any test.
        relay = Relay(RelayOptions(database="default", drain=True), stop=stop, outage=Backoff(base_s=1e6))
        conflicts = Conflicts(monkeypatch, relay, MAX_CONFLICTS)
        relay.run()
    assert conflicts.left == 0
    assert set(event.deliveries.values_list("state", flat=True)) == {"dispatched"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_endless_serialization_failures_are_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    outages, relay, stop = stopped_by_an_outage(monkeypatch)
    with stop:
        Conflicts(monkeypatch, relay, MAX_CONFLICTS + 1)
        relay.run()
    assert outages == ["database away"]
