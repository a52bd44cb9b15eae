"""The broker is away for an hour, by a clock that the test turns: the relay waits, and loses nothing."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle, pairwise
from types import SimpleNamespace

import pytest

from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, RelayHeartbeat
from outbox.models.heartbeat import ALIVE_FOR
from relay.backoff import CAP_S
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.housekeeping import BEAT_INTERVAL_S, Housekeeping
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.helpers import flush, publish
from tests.listening import clear_broker

OUTAGE_S = 3600

pytestmark = pytest.mark.django_db(transaction=True)


class Hour(Stop):
    """A clock that waiting turns, and what happened at which second of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.waits: list[float] = []
        self.claims: list[float] = []
        self.sends: list[float] = []
        self.beats: list[tuple[float, str, str]] = []
        self.attempts: set[int] = set()
        self.left: list[tuple[str, int]] = []
        # Chores are first due by the real clock.
        self._started = time.monotonic() + 60

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        if not self.is_over:
            self.waits.append(timeout_s)
        self.now_s += timeout_s
        return False

    def monotonic(self) -> float:
        return self._started + self.now_s

    @property
    def is_over(self) -> bool:
        return self.now_s >= OUTAGE_S


@contextmanager
def outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hour]:
    """Run a relay with two due deliveries and no broker, until it says that all is well again."""
    clear_broker()
    with Hour() as hour:
        watch(hour, monkeypatch)
        publish("test.recorded")
        # The longest waits are those of a relay that polls as seldom.
        options = RelayOptions(database="default", listen=False, poll_interval=timedelta(seconds=CAP_S))
        Relay(options, stop=hour).run()
        yield hour
    flush()
    clear_broker()


@pytest.fixture(scope="module")
def hours():
    """Return the hours that have passed: one is enough for all who only look back on it."""
    return []


@pytest.fixture
def hour(hours, monkeypatch, caplog):
    """Return an hour once it has passed."""
    if not hours:
        caplog.set_level(logging.ERROR, "relay.loop")
        with outage(monkeypatch) as hour:
            hour.left = list(Delivery.objects.values_list("status", "attempts"))
        hours.append(hour)
    return hours[0]


def watch(hour: Hour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the broker away for the hour, and note what the relay does."""
    beat, send, probe = Housekeeping.beat, Dispatcher.send, Dispatcher.probe

    def beat_and_note(self):
        beat(self)
        row = RelayHeartbeat.objects.alive().get()
        hour.beats.append((hour.now_s, row.state, row.detail))
        if hour.is_over and row.state == "running":
            hour.request()

    def probe_or_fail(self):
        hour.attempts.update(Delivery.objects.values_list("attempts", flat=True))
        if not hour.is_over:
            raise BrokerUnavailable("no route to the broker")
        probe(self)

    def send_and_note(self, claimed, *, timeout_s):
        hour.sends += [hour.now_s for _ in claimed]
        return send(self, claimed, timeout_s=timeout_s)

    for name in ("take", "take_lanes", "take_batch"):
        monkeypatch.setattr(Claim, name, noting(hour, getattr(Claim, name)))
    monkeypatch.setattr(Housekeeping, "beat", beat_and_note)
    monkeypatch.setattr(Dispatcher, "probe", probe_or_fail)
    monkeypatch.setattr(Dispatcher, "send", send_and_note)
    monkeypatch.setattr("relay.housekeeping.time", SimpleNamespace(monotonic=hour.monotonic))


def noting(hour: Hour, take):
    def take_and_note(*args, **options):
        hour.claims.append(hour.now_s)
        return take(*args, **options)

    return take_and_note


def gaps(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def test_no_wait_of_the_outage_exceeds_the_cap(hour):
    assert len(hour.waits) > OUTAGE_S / CAP_S
    assert max(hour.waits) <= CAP_S


def test_a_relay_looks_for_its_broker_as_often_as_it_polls(monkeypatch):
    def away(self):
        raise BrokerUnavailable("no route to the broker")

    monkeypatch.setattr(Dispatcher, "probe", away)
    with Hour() as hour:
        relay = Relay(RelayOptions(database="default", listen=False), stop=hour)
        for _ in range(20):
            relay._work()
    assert len(hour.waits) == 20
    assert max(hour.waits) <= 1


def test_the_waits_of_the_outage_differ(hour):
    # A long wait is made in steps, between which the relay says that it lives.
    rests = [wait for wait in hour.waits if wait != BEAT_INTERVAL_S]
    assert len(set(rests)) == len(rests) > 100


def test_nothing_is_claimed_while_the_broker_is_away(hour):
    assert min(hour.claims) >= OUTAGE_S


def test_an_outage_costs_no_attempts(hour):
    assert hour.attempts == {0}
    assert {attempts for _status, attempts in hour.left} == {1}


def test_everything_goes_within_one_cap_of_the_brokers_return(hour):
    assert {status for status, _attempts in hour.left} == {"dispatched"}
    assert len(hour.sends) == len(hour.left) == 2
    assert max(hour.sends) <= OUTAGE_S + CAP_S


def test_the_relay_goes_on_saying_that_it_waits_for_the_broker(hour):
    during = [beat for beat in hour.beats if beat[0] < OUTAGE_S]
    assert len(during) > OUTAGE_S / (CAP_S + BEAT_INTERVAL_S)
    assert {beat[1:] for beat in during} == {("broker away", "no route to the broker")}
    assert max(gaps([beat[0] for beat in hour.beats])) <= CAP_S + BEAT_INTERVAL_S


def test_a_relay_that_waits_for_the_broker_counts_as_alive(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "relay.loop")
    shares = cycle((0.1, 1.0))
    dice = SimpleNamespace(uniform=lambda low, high: high * next(shares))
    monkeypatch.setattr("relay.backoff.random", dice)
    with outage(monkeypatch) as hour:
        assert max(gaps([beat[0] for beat in hour.beats])) < ALIVE_FOR.total_seconds()


def test_the_relay_says_that_the_broker_is_back(hour):
    at, state, detail = hour.beats[-1]
    assert OUTAGE_S <= at <= OUTAGE_S + CAP_S + BEAT_INTERVAL_S
    assert (state, detail) == ("running", "")
