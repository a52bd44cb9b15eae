"""What signals a relay heeds, alone and as one of several."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from relay import lifeline
from relay.stopping import Stop, on_signals, on_signals_of_child
from tests.processes import wait_until

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _with_a_terminal() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def stop() -> Iterator[Stop]:
    with Stop() as stop:
        yield stop


def send(*numbers: signal.Signals) -> None:
    """Send signals to this thread, as others of the tests' process may not block what this one does."""
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", HEEDED)
def test_each_signal_stops_a_relay(stop: Stop, number: signal.Signals) -> None:
    with on_signals(stop):
        assert not stop.requested
        send(number)
        assert stop.requested


def test_a_hangup_is_no_second_signal(stop: Stop) -> None:
    with on_signals(stop):
        send(signal.SIGTERM, signal.SIGHUP)
        assert stop.requested


def test_a_relay_that_is_shielded_from_hangups_stays_so(stop: Stop) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with on_signals(stop):
        send(signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_child_is_stopped_by_sigterm_however_often_it_comes(stop: Stop) -> None:
    with on_signals_of_child(stop):
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
        assert stop.requested


def test_a_child_leaves_ctrl_c_to_its_supervisor(stop: Stop) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    send(signal.SIGINT)
    with on_signals_of_child(stop):
        send(signal.SIGINT)
        assert not stop.requested


def test_a_child_stops_when_its_supervisor_is_gone(stop: Stop) -> None:
    with lifeline.Lifeline() as line:
        lifeline.stop_with_supervisor(os.dup(line.reader), stop)
        assert not stop.requested
    wait_until(lambda: stop.requested, what="the stop")


@pytest.mark.parametrize("listening", [on_signals, on_signals_of_child])
def test_signals_are_handled_as_before_afterwards(stop: Stop, listening: type) -> None:
    before = [signal.getsignal(number) for number in HEEDED]
    with listening(stop):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in HEEDED] == before
