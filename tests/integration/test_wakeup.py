"""The connection on which a relay listens: a help, on which nothing may depend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from django.db import OperationalError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.quiet import Quiet
from outbox.wakeup import CHANNEL, URGENT, wake
from relay import wakeup
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.helpers import publish
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
        listening = wakeup_of(stop)
        assert not listening.wait(0.01)
        # As long as that took the relay does not try again.
        assert not listening._is_time_to_connect()
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
        assert not wakeup_of(stop).wait(0.01)
        assert listened.wait(20)
        assert sessions() == 1
        go_on.set()
        wait_until(lambda: sessions() == 0, what="the session to be closed")


def test_the_attempt_to_connect_ends_by_itself() -> None:
    with Stop() as stop:
        listening = wakeup_of(stop)
        listening.wait(0.01)
        assert listening._wrapper.connection.info.get_parameters()["connect_timeout"] == "2"
        listening.close()


def test_a_relay_that_has_begun_to_listen_looks_for_what_it_was_not_told() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        # The first time as well: somebody may have published after its look.
        assert [listening.wait(0.01), listening.is_late] == [True, True]
        assert not listening.wait(0.01)
        break_off(listening)
        assert [listening.wait(0.01), listening.wait(0.01)] == [True, False]
        notify()
        assert listening.wait(20)


def test_a_connection_that_breaks_as_soon_as_it_is_made_is_not_made_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wakeup, "RECONNECT_INTERVAL_S", 600.0)
    with Stop() as stop, closing(wakeup_of(stop, poll_s=600)) as listening:
        listening.wait(0.01)
        break_off(listening)
        assert not listening.wait(0.01)
        assert sessions() == 0


def test_what_keeps_a_relay_from_listening_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: BaseDatabaseWrapper) -> None:
        raise OperationalError("too many clients")

    with Stop() as stop:
        listening = wakeup_of(stop)
        with monkeypatch.context() as patched:
            patched.setattr(wakeup, "_listen", refuse)
            listening.wait(0.01)
            listening.wait(0.01)
        assert caplog.text.count("polling only: too many clients") == 1
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        monkeypatch.setattr(wakeup, "_listen", refuse)
        listening.close()
        assert not listening.wait(0.01)
        assert caplog.text.count("polling only: too many clients") == 2


def test_a_relay_that_has_just_worked_lets_notifications_gather() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        notify()
        calm_until = time.monotonic() + 0.2
        assert listening.wait(30, calm_until=calm_until)
        assert time.monotonic() >= calm_until
        assert not listening.wait(0), "some were left over"


def test_what_is_urgent_is_not_put_off() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        wake("default", saying=URGENT)
        assert listening.wait(30, calm_until=time.monotonic() + 600)


def test_a_transaction_that_took_long_says_that_its_rows_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        monkeypatch.setattr("outbox.wakeup._last_notified", {"default": time.monotonic()})
        monkeypatch.setattr("outbox.wakeup.LATE_S", 0.0)
        publish("test.recorded")
        assert listening.wait(30)
        assert listening.is_late
        monkeypatch.setattr("outbox.wakeup.LATE_S", 600.0)
        monkeypatch.setattr("outbox.wakeup._last_notified", {})
        monkeypatch.setattr("outbox.wakeup.quiet_of", lambda _: Quiet(bytearray(Quiet.BYTES)))
        publish("test.recorded")
        assert listening.wait(30)
        assert not listening.is_late


def test_a_stop_is_not_put_off_either() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        notify()
        threading.Timer(0.1, stop.request).start()
        assert listening.wait(30, calm_until=time.monotonic() + 600)


def wakeup_of(stop: Stop, *, poll_s: float = 0.0) -> Wakeup:
    """Return what a relay that polls so often waits with."""
    return Wakeup(database="default", listen=True, stop=stop, poll_s=poll_s)


def notify() -> None:
    """Tell all relays that there is work."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def break_off(listening: Wakeup) -> None:
    """End the sessions of this database that listen, and wait until this one has noticed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN %' AND pid <> pg_backend_pid()"
        )
    while listening._wrapper is not None:
        assert listening.wait(20)


def sessions() -> int:
    """Return how many sessions of this database listen."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN %' AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])
