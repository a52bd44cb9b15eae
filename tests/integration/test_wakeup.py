"""The connection on which a relay listens; without it the relay polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from django.db import OperationalError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.publishing.notify import CHANNEL, URGENT, Notifier, wake
from outbox.publishing.notify_throttle import NotifyThrottle
from relay import wakeup
from relay.stopping import Stop
from relay.wakeup import Wakeup
from tests.support.data_flow import publish
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make the server accept connections without an answer, until the event is set."""
    over = threading.Event()
    monkeypatch.setattr(type(connections["default"]), "ensure_connection", lambda wrapper: over.wait(30))
    yield over
    over.set()


def test_a_relay_polls_if_the_server_accepts_the_connection_but_does_not_answer(
    silence: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with Stop() as stop:
        listening = wakeup_of(stop, connect_timeout_s=0.05)
        assert not listening.wait(0.01)
        # The relay does not try again for some time.
        assert not listening._is_time_to_connect()
    assert not silence.is_set()
    assert "polling only: no answer within 0.05 s" in caplog.text


def test_a_session_that_opens_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    listened, go_on = threading.Event(), threading.Event()
    wrappers: list[BaseDatabaseWrapper] = []
    listen = wakeup.listen

    def listen_late(wrapper: BaseDatabaseWrapper) -> None:
        # Otherwise the garbage collector might close the connection.
        wrappers.append(wrapper)
        listen(wrapper)
        listened.set()
        go_on.wait(30)

    monkeypatch.setattr(wakeup, "listen", listen_late)
    with Stop() as stop:
        assert not wakeup_of(stop, connect_timeout_s=0.05).wait(0.01)
        assert listened.wait(20)
        assert sessions() == 1
        go_on.set()
        wait_until(lambda: sessions() == 0, what="the session to be closed")


def test_an_attempt_to_connect_has_a_timeout() -> None:
    with Stop() as stop:
        listening = wakeup_of(stop)
        listening.wait(0.01)
        assert listening._wrapper.connection.info.get_parameters()["connect_timeout"] == "2"
        listening.close()


def test_a_relay_that_has_started_to_listen_scans_for_missed_work() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        # Also at the first time: an event may have been published after the scan.
        assert [listening.wait(0.01), listening.is_late] == [True, True]
        assert not listening.wait(0.01)
        break_off(listening)
        assert [listening.wait(0.01), listening.wait(0.01)] == [True, False]
        notify()
        assert listening.wait(20)


def test_a_connection_that_breaks_soon_is_not_reopened_at_once() -> None:
    with Stop() as stop, closing(wakeup_of(stop, poll_s=600, reconnect_interval_s=600)) as listening:
        listening.wait(0.01)
        break_off(listening)
        assert not listening.wait(0.01)
        assert sessions() == 0


def test_a_failure_to_listen_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: BaseDatabaseWrapper) -> None:
        raise OperationalError("too many clients")

    with Stop() as stop:
        listening = wakeup_of(stop)
        with monkeypatch.context() as patched:
            patched.setattr(wakeup, "listen", refuse)
            listening.wait(0.01)
            listening.wait(0.01)
        assert caplog.text.count("polling only: too many clients") == 1
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        assert caplog.text.count("listening to database 'default' again after") == 1
        monkeypatch.setattr(wakeup, "listen", refuse)
        listening.close()
        assert not listening.wait(0.01)
        assert caplog.text.count("polling only: too many clients") == 2


def test_a_relay_that_has_just_worked_coalesces_notifications() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        notify()
        coalesce_until = time.monotonic() + 0.2
        assert listening.wait(30, coalesce_until=coalesce_until)
        assert time.monotonic() >= coalesce_until
        assert not listening.wait(0), "notifications were left over"


def test_an_urgent_notification_is_not_coalesced() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        wake("default", payload=URGENT)
        assert listening.wait(30, coalesce_until=time.monotonic() + 600)


def test_a_long_transaction_notifies_that_its_rows_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        notifier = notifier_with(late_s=0)
        notifier.notify("default")
        assert listening.wait(30)
        monkeypatch.setattr("outbox.publishing.notify.notifier", notifier)
        publish("test.recorded")
        assert listening.wait(30)
        assert listening.is_late
        monkeypatch.setattr("outbox.publishing.notify.notifier", notifier_with(late_s=600))
        publish("test.recorded")
        assert listening.wait(30)
        assert not listening.is_late


def test_a_stop_request_does_not_wait_for_coalescing() -> None:
    with Stop() as stop, closing(wakeup_of(stop)) as listening:
        wait_until(lambda: listening.wait(0.01), what="the relay to listen")
        notify()
        threading.Timer(0.1, stop.request).start()
        assert listening.wait(30, coalesce_until=time.monotonic() + 600)


def wakeup_of(stop: Stop, *, listen: bool = True, poll_s: float = 0.0, **timing: float) -> Wakeup:
    """Return the wakeup of a relay with this poll interval."""
    return Wakeup(database="default", listen=listen, stop=stop, poll_s=poll_s, **timing)


def notifier_with(**timing: float) -> Notifier:
    """Return a notifier that shares no throttle with other processes."""
    return Notifier(throttle=lambda _database: NotifyThrottle(bytearray(NotifyThrottle.BYTES)), **timing)


def notify() -> None:
    """Notify all relays."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def break_off(listening: Wakeup) -> None:
    """End the sessions of this database that listen, and wait until the wakeup has noticed it."""
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


@pytest.mark.parametrize("is_listening", [True, False])
def test_another_thread_ends_a_wait_and_asks_for_a_full_scan(is_listening: bool) -> None:
    with Stop() as stop:
        woken = wakeup_of(stop, listen=is_listening)
        woken.waker.open()
        try:
            if is_listening:
                wait_until(lambda: woken.wait(0.01), what="the relay to listen")
            waking = threading.Timer(0.05, woken.waker.wake)
            waking.start()
            assert woken.wait(60)
            assert woken.is_late
            assert not woken.wait(0)
            waking.join()
        finally:
            woken.close()
            woken.waker.close()
