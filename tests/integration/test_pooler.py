"""A relay behind a connection pooler: LISTEN works in session mode only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from django.db import connection

from outbox.publishing.notify import CHANNEL
from relay import listening, owner_lock
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.conftest import database_url
from tests.support.pooler import TransactionPooler
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@contextmanager
def behind(pooler: TransactionPooler, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wakeup]:
    """Return the wakeup of a relay that connects through a pooler."""
    parts = {"HOST": "127.0.0.1", "PORT": str(pooler.port)}
    options = {**connection.settings_dict["OPTIONS"], "sslmode": "disable", "gssencmode": "disable"}
    # The test itself keeps a direct connection.
    connection.ensure_connection()
    with monkeypatch.context() as patched, Stop() as stop:
        for name, value in {**parts, "OPTIONS": options}.items():
            patched.setitem(connection.settings_dict, name, value)
        wakeup = Wakeup(database="default", listen=True, stop=stop, poll_s=0, connect_timeout_s=20)
        with closing(wakeup):
            yield wakeup


def test_a_relay_behind_a_pooler_in_transaction_mode_says_once_that_it_polls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TransactionPooler(database_url()) as pooler, behind(pooler, monkeypatch) as wakeup:
        assert not wakeup.wait(0.01)
        accepted = pooler.accepted
        assert not wakeup.wait(0.01)
        # The next attempt comes later than the next attempt after an outage.
        assert pooler.accepted == accepted
        (problem,) = wakeup.problems()
        assert problem["kind"] == "relay_polls"
        assert problem["cause"].startswith("a connection pooler shares the sessions")
    assert caplog.text.count("polling only: a connection pooler shares the sessions") == 1


def test_a_session_that_does_not_listen_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # LISTEN reached another session than the next statement.
    monkeypatch.setattr(listening, "CHANNEL", "another_channel")
    query = "SELECT pg_backend_pid(), ARRAY(SELECT pg_listening_channels())"
    monkeypatch.setattr(listening, "CHANNELS", query.replace("pg_listening_channels()", "'elsewhere'"))
    with Stop() as stop, closing(Wakeup(database="default", listen=True, stop=stop, poll_s=0)) as wakeup:
        assert not wakeup.wait(0.01)
    assert "polling only: a connection pooler shares the sessions" in caplog.text


def test_a_relay_behind_a_pooler_in_session_mode_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    pooler = TransactionPooler(database_url(), passes_notifications=True)
    with pooler, behind(pooler, monkeypatch) as wakeup:
        wait_until(lambda: wakeup.wait(0.01), what="the relay to listen")
        with connection.cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
        assert wakeup.wait(30)


def test_a_process_behind_a_pooler_never_holds_the_lock_of_its_deliveries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        TransactionPooler(database_url()) as pooler,
        behind(pooler, monkeypatch),
        owner_lock.OwnerLock("default") as lock,
    ):
        wait_until(lambda: "lost the lock" in caplog.text, what="the lock to be given up")
        assert not lock.wait(0)
    assert caplog.text.count("a connection pooler shares the sessions") == 1
