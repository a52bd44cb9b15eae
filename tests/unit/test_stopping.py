"""The signals that stop a relay, alone and as a child of a supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from relay.stopping import Stop, on_signals, on_signals_of_child
from relay.supervision import parent_pipe
from tests.support.processes import wait_until

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _sighup_not_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def stop() -> Iterator[Stop]:
    with Stop() as stop:
        yield stop


def send(*numbers: signal.Signals) -> None:
    """Send signals to this thread, since other threads of the test process may not block them."""
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_stops_a_relay(stop: Stop, number: signal.Signals) -> None:
    with on_signals(stop):
        assert not stop.requested
        send(number)
        assert stop.requested


def test_sighup_does_not_count_as_a_second_signal(stop: Stop) -> None:
    with on_signals(stop):
        send(signal.SIGTERM, signal.SIGHUP)
        assert stop.requested


def test_a_relay_started_with_nohup_ignores_sighup(stop: Stop) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with on_signals(stop):
        send(signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_several_stop_signals_stop_a_child_without_an_exit_at_once(stop: Stop) -> None:
    with on_signals_of_child(stop):
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
        assert stop.requested


def test_a_child_ignores_ctrl_c(stop: Stop) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    send(signal.SIGINT)
    with on_signals_of_child(stop):
        send(signal.SIGINT)
        assert not stop.requested


def test_a_child_stops_when_its_supervisor_has_ended(stop: Stop) -> None:
    with parent_pipe.ParentPipe() as pipe:
        parent_pipe.stop_with_supervisor(os.dup(pipe.reader), stop)
        assert not stop.requested
    wait_until(lambda: stop.requested, what="the stop")


@pytest.mark.parametrize("on_stop_signals", [on_signals, on_signals_of_child])
def test_the_signal_handlers_are_restored_at_the_end(stop: Stop, on_stop_signals: type) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with on_stop_signals(stop):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
