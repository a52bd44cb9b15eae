"""The broker is unreachable for an hour, by the clock of the test: the relay waits, and loses nothing."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle, pairwise

import pytest

from outbox.errors import BrokerUnavailable
from outbox.models import Delivery, ProcessHeartbeat
from outbox.models.heartbeat import ALIVE_FOR
from relay.backoff import CAP_S, Backoff
from relay.claim import Claim
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.maintenance import BEAT_INTERVAL_S, Maintenance
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import clear_broker, flush, publish

OUTAGE_S = 3600

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


class Hour(Stop):
    """A clock that waits advance, and a record of the relay's actions with their times in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.waits: list[float] = []
        self.claims: list[float] = []
        self.sends: list[float] = []
        self.beats: list[tuple[float, str, str]] = []
        self.attempts: set[int] = set()
        self.deliveries: list[tuple[str, int]] = []

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        if not self.is_over:
            self.waits.append(timeout_s)
        self.now_s += timeout_s
        return False

    def monotonic(self) -> float:
        return self.now_s

    @property
    def is_over(self) -> bool:
        return self.now_s >= OUTAGE_S


@contextmanager
def outage(monkeypatch: pytest.MonkeyPatch, backoff: Backoff | None = None) -> Iterator[Hour]:
    """Run a relay with two due deliveries and without a broker, until its state is "running" again."""
    clear_broker()
    with Hour() as hour:
        record(hour, monkeypatch)
        publish("test.recorded")
        # With this poll interval the relay waits up to the cap of the backoff.
        options = RelayOptions(
            database="default",
            listen=False,
            poll_interval=timedelta(seconds=CAP_S),
            maintain_beside=False,
            clock=hour.monotonic,
        )
        Relay(options, stop=hour, outage=backoff).run()
        yield hour
    flush()
    clear_broker()


@pytest.fixture(scope="module")
def hours():
    """Return a list for the one outage that most tests share."""
    return []


@pytest.fixture
def hour(hours, monkeypatch, caplog):
    """Return the record of an outage."""
    if not hours:
        caplog.set_level(logging.ERROR, "relay.loop")
        with outage(monkeypatch) as hour:
            hour.deliveries = list(Delivery.objects.values_list("state", "attempts"))
        hours.append(hour)
    return hours[0]


def record(hour: Hour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the broker unreachable for the hour, and record the relay's actions."""
    beat, send, probe = Maintenance.beat, Dispatcher.send, Dispatcher.probe

    def beat_and_record(self):
        beat(self)
        row = ProcessHeartbeat.objects.alive().get()
        hour.beats.append((hour.now_s, row.state, row.detail))
        if hour.is_over and row.state == "running":
            hour.request()

    def probe_or_fail(self):
        if not hour.is_over:
            hour.attempts.update(Delivery.objects.values_list("attempts", flat=True))
            raise BrokerUnavailable("no route to the broker")
        probe(self)

    def send_and_record(self, claimed, **options):
        hour.sends += [hour.now_s for _ in claimed]
        return send(self, claimed, **options)

    for name in ("claim_due", "claim_ordered", "claim_batch"):
        monkeypatch.setattr(Claim, name, recording(hour, getattr(Claim, name)))
    monkeypatch.setattr(Maintenance, "beat", beat_and_record)
    monkeypatch.setattr(Dispatcher, "probe", probe_or_fail)
    monkeypatch.setattr(Dispatcher, "send", send_and_record)


def recording(hour: Hour, claim):
    def claim_and_record(*args, **options):
        hour.claims.append(hour.now_s)
        return claim(*args, **options)

    return claim_and_record


def gaps(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def test_no_wait_of_the_outage_exceeds_the_cap(hour):
    assert len(hour.waits) > OUTAGE_S / CAP_S
    assert max(hour.waits) <= CAP_S


def test_a_relay_probes_an_unreachable_broker_as_often_as_it_polls(monkeypatch):
    waits = []

    class Waits(Stop):
        """Records the waits instead of waiting; stops the relay after 20 of them."""

        def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
            waits.append(timeout_s)
            if len(waits) == 20:
                self.request()
            return False

    def fail(self):
        raise BrokerUnavailable("no route to the broker")

    monkeypatch.setattr(Dispatcher, "probe", fail)
    with Waits() as stop:
        Relay(RelayOptions(database="default", listen=False), stop=stop).run()
    assert len(waits) == 20
    assert max(waits) <= 1


def test_the_waits_of_the_outage_differ(hour):
    # A long wait has several steps, and the relay writes a heartbeat after each step.
    rests = [wait for wait in hour.waits if wait != BEAT_INTERVAL_S]
    assert len(set(rests)) == len(rests) > 100


def test_nothing_is_claimed_while_the_broker_is_unreachable(hour):
    assert min(hour.claims) >= OUTAGE_S


def test_an_outage_costs_no_attempts(hour):
    assert hour.attempts == {0}
    assert {attempts for _state, attempts in hour.deliveries} == {1}


def test_all_deliveries_are_dispatched_within_one_cap_after_the_outage(hour):
    assert {state for state, _attempts in hour.deliveries} == {"dispatched"}
    assert len(hour.sends) == len(hour.deliveries) == 2
    assert max(hour.sends) <= OUTAGE_S + CAP_S


def test_the_heartbeats_of_the_outage_show_its_cause(hour):
    during = [beat for beat in hour.beats if beat[0] < OUTAGE_S]
    assert len(during) > OUTAGE_S / (CAP_S + BEAT_INTERVAL_S)
    assert {beat[1:] for beat in during} == {("broker away", "no route to the broker")}
    assert max(gaps([beat[0] for beat in hour.beats])) <= CAP_S + BEAT_INTERVAL_S


def test_a_relay_that_waits_for_the_broker_counts_as_alive(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "relay.loop")
    shares = cycle((0.1, 1.0))
    backoff = Backoff(cap_s=CAP_S, jitter=lambda _low, high: high * next(shares))
    with outage(monkeypatch, backoff) as hour:
        assert max(gaps([beat[0] for beat in hour.beats])) < ALIVE_FOR.total_seconds()


def test_the_heartbeat_after_the_outage_shows_that_the_relay_runs(hour):
    at, state, detail = hour.beats[-1]
    assert OUTAGE_S <= at <= OUTAGE_S + CAP_S + BEAT_INTERVAL_S
    assert (state, detail) == ("running", "")
