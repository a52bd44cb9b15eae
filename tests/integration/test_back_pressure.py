"""A broker that fails with any exception, or takes some messages only: what this costs the deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from django.db.models.functions import Now
from dramatiq.brokers.stub import StubBroker

import outbox
from outbox.conf import get_settings
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.observability import telemetry
from outbox.registry import registry
from relay.backoff import Backoff
from relay.dispatch import Dispatcher
from relay.loop import Relay
from relay.maintenance import Maintenance
from relay.publishers.generic import MAX_UNPROVED_IN_A_ROW
from relay.relay_options import RelayOptions
from relay.rounds import Rounds
from relay.stopping import Stop
from tests.support.data_flow import clear_broker, flush, relay_all
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

BATCH = 3 * MAX_UNPROVED_IN_A_ROW


class Broken:
    """The faults of the in-memory broker.

    Attributes:
        handlers: the handlers whose messages it does not take.
    """

    def __init__(self) -> None:
        self.handlers: set[str] = set()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    """Let the in-memory broker fail, with an exception of no known client library."""
    broker, faults = dramatiq.get_broker(), Broken()
    enqueue = broker.enqueue

    def fail_or_enqueue(message: Any, *, delay: int | None = None) -> Any:
        if message.actor_name in faults.handlers:
            raise RuntimeError("no such server")
        return enqueue(message, delay=delay)

    for name in ("pressed.mail", "pressed.log"):
        outbox.handler(name, name=name, queue_name=QUEUE)(lambda event: None)
    clear_broker()
    monkeypatch.setattr(broker, "enqueue", fail_or_enqueue)
    yield faults
    for name in ("pressed.mail", "pressed.log"):
        registry.remove(name)
    flush()
    clear_broker()


@contextmanager
def dispatching(**options: Any) -> Iterator[Callable[[], None]]:
    """Yield a function that dispatches all pending deliveries, also those that wait for another attempt."""
    with Stop() as stop, closing(Dispatcher(database="default")) as dispatcher:
        chosen = RelayOptions(**{"database": "default", "batch_size": BATCH, **options})
        maintenance = Maintenance(database="default")
        rounds = Rounds(chosen, stop=stop, dispatcher=dispatcher, maintenance=maintenance)

        def dispatch() -> None:
            Delivery.objects.pending().update(available_at=Now())
            rounds.claim.cursors.reset()
            while rounds.due_in() <= 0:
                with suppress(BrokerUnavailable):
                    rounds.dispatch_due()

        yield dispatch


def publish_many(topic: str, count: int) -> None:
    with transaction.atomic():
        outbox.publish_many([{"topic": topic} for _ in range(count)])


def states(handler: str) -> set[tuple[str, int, int]]:
    """Return state, attempts and refusals of a handler's deliveries."""
    rows = Delivery.objects.filter(handler=handler)
    return set(rows.values_list("state", "attempts", "refusals"))


def test_an_outage_with_any_exception_costs_no_attempts(broken: Broken) -> None:
    publish_many("pressed.mail", 2 * BATCH)
    broken.handlers = {"pressed.mail", "pressed.log"}
    with dispatching() as dispatch:
        for _ in range(2 * get_settings().max_dispatch_attempts):
            dispatch()
        assert states("pressed.mail") == {("pending", 0, 0)}
        broken.handlers = set()
        dispatch()
    assert states("pressed.mail") == {("dispatched", 1, 0)}


def test_refused_messages_at_the_head_let_the_others_pass(broken: Broken) -> None:
    publish_many("pressed.mail", 2 * BATCH)
    publish_many("pressed.log", BATCH)
    broken.handlers = {"pressed.mail"}
    with dispatching() as dispatch:
        dispatch()
        assert states("pressed.log") == {("dispatched", 1, 0)}
        assert states("pressed.mail") == {("pending", 0, 0)}


def test_a_message_that_the_broker_refuses_while_it_takes_others_fails(broken: Broken) -> None:
    publish_many("pressed.mail", 1)
    broken.handlers = {"pressed.mail"}
    with dispatching() as dispatch:
        # The first two failures prove nothing: the broker has taken no other message before or between them.
        for _ in range(2 + get_settings().max_dispatch_attempts):
            assert Delivery.objects.get(handler="pressed.mail").state == "pending"
            dispatch()
            publish_many("pressed.log", 1)
    assert states("pressed.mail") == {("failed", 0, get_settings().max_dispatch_attempts)}


class Visits(Stop):
    """A stop whose waits end at once and make all deliveries due; the broker works again in the third one."""

    def __init__(self, broken: Broken) -> None:
        super().__init__()
        self._broken = broken
        self._waits = 0

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        Delivery.objects.pending().update(available_at=Now())
        self._waits += 1
        if self._waits == 3:
            self._broken.handlers = set()
        return False


def test_the_relay_reports_a_shortfall_once_and_its_end(broken: Broken) -> None:
    seen: list[tuple[str, str]] = []

    def note(sender: Any, *, state: str, error: str = "", **_: Any) -> None:
        seen.append((state, error))

    publish_many("pressed.mail", 1)
    broken.handlers = {"pressed.mail"}
    telemetry.relay_in_trouble.connect(note)
    telemetry.relay_recovered.connect(note)
    try:
        with Visits(broken) as stop:
            options = RelayOptions(database="default", drain=True)
            Relay(options, stop=stop, outage=Backoff(jitter=lambda _low, high: high)).run()
    finally:
        telemetry.relay_in_trouble.disconnect(note)
        telemetry.relay_recovered.disconnect(note)
    assert seen == [("broker away", "RuntimeError: no such server"), ("running", "")]
    assert states("pressed.mail") == {("dispatched", 1, 0)}


class Away(StubBroker):
    """A broker that cannot be reached, and then can."""

    error: BrokerUnavailable | None = BrokerUnavailable("gone")

    @property
    def client(self) -> Any:
        def ping() -> None:
            if self.error:
                raise self.error

        return SimpleNamespace(ping=ping)


@pytest.fixture
def away() -> Iterator[Away]:
    """Declare a handler of a second broker, which cannot be reached."""
    broker = Away(middleware=[])
    outbox.handler("pressed.away", name="pressed.away", queue_name=QUEUE, broker=broker)(lambda event: None)
    yield broker
    registry.remove("pressed.away")
    flush()


def test_a_second_broker_that_is_away_is_reported_while_the_first_works(broken: Broken, away: Away) -> None:
    seen: list[tuple[str, str]] = []

    def note(sender: Any, *, state: str, error: str = "", **_: Any) -> None:
        seen.append((state, error))

    publish_many("pressed.away", 1)
    publish_many("pressed.log", 1)
    telemetry.relay_in_trouble.connect(note)
    telemetry.relay_recovered.connect(note)
    try:
        relay_all()
    finally:
        telemetry.relay_in_trouble.disconnect(note)
        telemetry.relay_recovered.disconnect(note)
    assert seen == [("broker away", "BrokerUnavailable: gone")]
    assert states("pressed.away") == {("pending", 0, 0)}
    assert states("pressed.log") == {("dispatched", 1, 0)}


def test_the_report_ends_when_the_second_broker_is_back(broken: Broken, away: Away) -> None:
    publish_many("pressed.away", 1)
    with Stop() as stop, closing(Dispatcher(database="default")) as dispatcher:
        rounds = Rounds(
            RelayOptions(database="default"),
            stop=stop,
            dispatcher=dispatcher,
            maintenance=Maintenance(database="default"),
        )
        rounds.dispatch_due()
        assert rounds.shortfall.reason == "BrokerUnavailable: gone"
        away.error = None
        Delivery.objects.pending().update(available_at=Now())
        rounds.dispatch_due()
        assert rounds.shortfall.reason == ""
    assert states("pressed.away") == {("dispatched", 1, 0)}
