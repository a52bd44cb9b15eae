"""The connection on which a relay listens: a help, on which nothing may depend."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from relay import wakeup
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have the server accept connections and say no more, until the event is set."""
    over = threading.Event()
    monkeypatch.setattr(type(connections["default"]), "ensure_connection", lambda wrapper: over.wait(30))
    yield over
    over.set()


def test_a_server_that_accepts_and_says_nothing_leaves_the_relay_to_poll(
    silence: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("relay.wakeup.CONNECT_TIMEOUT_S", 0.05)
    with Stop() as stop:
        assert not Wakeup(database="default", listen=True, stop=stop).wait(0.01)
    assert not silence.is_set()
    assert "polling only: no answer within 0.05 s" in caplog.text


def test_a_session_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    listened, go_on = threading.Event(), threading.Event()
    wrappers: list[BaseDatabaseWrapper] = []
    listen = wakeup._listen

    def listen_late(wrapper: BaseDatabaseWrapper) -> None:
        # Else the garbage collector might close it.
        wrappers.append(wrapper)
        listen(wrapper)
        listened.set()
        go_on.wait(30)

    monkeypatch.setattr(wakeup, "_listen", listen_late)
    monkeypatch.setattr(wakeup, "CONNECT_TIMEOUT_S", 0.05)
    with Stop() as stop:
        assert not Wakeup(database="default", listen=True, stop=stop).wait(0.01)
        assert listened.wait(20)
        assert sessions() == 1
        go_on.set()
        wait_until(lambda: sessions() == 0, what="the session to be closed")


def test_the_attempt_to_connect_ends_by_itself() -> None:
    with Stop() as stop:
        listening = Wakeup(database="default", listen=True, stop=stop)
        listening.wait(0.01)
        assert listening._wrapper.connection.info.get_parameters()["connect_timeout"] == "2"
        listening.close()


def sessions() -> int:
    """Return how many sessions of this database listen."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN %' AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])
