"""The connection on which a relay listens: a help, on which nothing may depend."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from django.db import connections

from relay.stopping import Stop
from relay.wakeup import Wakeup

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
