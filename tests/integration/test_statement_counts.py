"""How many statements the database gets to see: of a busy relay, of an idle one, and of busy publishers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from types import SimpleNamespace

import dramatiq
import pytest
from django.db import transaction
from dramatiq.broker import MessageProxy

import outbox
from outbox import wakeup
from outbox.confirmations import confirmations
from outbox.models import Delivery
from outbox.quiet import Quiet
from outbox.registry import registry
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.helpers import publish, relay_all
from tests.statements import counted
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

EVENTS = 2000
MOST_PER_EVENT = 0.05
MOST_PER_SECOND = 2
IDLE_S = 600
# Until the looks are a second apart.
WARM_UP_S = 10


@pytest.fixture
def handlers() -> Iterator[None]:
    """Declare a handler of each kind; all kinds ask the database something of their own."""
    outbox.handler("counted.*", name="counted", queue_name=QUEUE)(lambda event: None)
    outbox.handler("lane.*", name="counted_lane", queue_name=QUEUE, ordered=True)(lambda event: None)
    outbox.handler(
        "counted_heap.*",
        name="counted_batch",
        queue_name=QUEUE,
        batch_size=500,
        batch_wait=timedelta(hours=1),
    )(lambda events: None)
    dramatiq.get_broker().flush_all()
    yield
    for name in ("counted", "counted_lane", "counted_batch"):
        registry.remove(name)
    dramatiq.get_broker().flush_all()


@pytest.mark.parametrize("topic", ["counted.x", "counted_heap.x"])
def test_an_event_costs_a_twentieth_of_a_statement_at_most(handlers, monkeypatch, topic):
    # Outcomes are written by size or by time; a slow machine must not make it time.
    monkeypatch.setattr("outbox.confirmations.flushing.FLUSH_INTERVAL_S", 60.0)
    with transaction.atomic():
        outbox.publish_many({"topic": topic, "payload": n} for n in range(EVENTS))
    with counted() as statements:
        relay_all(batch_size=500)
        run_all_messages()
        # Ends the thread that writes them.
        confirmations.close()
        texts = statements.texts()
    assert list(Delivery.objects.values_list("status").distinct()) == [("succeeded",)]
    assert {"BEGIN", "COMMIT"} <= set(texts)
    assert len(texts) <= EVENTS * MOST_PER_EVENT, texts


def run_all_messages() -> None:
    """Run what is in the queue, by all of Dramatiq's middleware, as a worker of one thread does."""
    broker = dramatiq.get_broker()
    queue = broker.queues[QUEUE]
    while not queue.empty():
        message = MessageProxy(dramatiq.Message.decode(queue.get()))
        queue.task_done()
        broker.emit_before("process_message", message)
        broker.get_actor(message.actor_name)(*message.args, **message.kwargs)
        broker.emit_after("process_message", message, result=None)


class Hours(Stop):
    """A clock that waiting turns; when it has run for long enough the relay is to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.now = time.monotonic()
        self.texts: Callable[[], list[str]] = list
        self.at_rest = 0

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        self.now += timeout_s
        if not self.at_rest and self.now >= self.started + WARM_UP_S:
            self.at_rest = len(self.texts())
        if self.now >= self.started + WARM_UP_S + IDLE_S:
            self.request()
        return False

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("listen", [True, False])
def test_an_idle_relay_sends_two_statements_a_second_at_most(handlers, monkeypatch, listen):
    publish("counted.x", delay=timedelta(days=1))
    publish("counted_heap.x")
    with Hours() as hours, counted() as statements:
        hours.texts = statements.texts
        for module in ("relay.housekeeping", "relay.claim.front", "relay.wakeup"):
            monkeypatch.setattr(f"{module}.time", hours)
        Relay(RelayOptions(database="default", listen=listen), stop=hours).run()
        texts = statements.texts()[hours.at_rest :]
    assert len([text for text in texts if "outbox_delivery" in text]) >= IDLE_S, "it did not look"
    assert any("outbox_relayheartbeat" in text for text in texts)
    assert len(texts) <= MOST_PER_SECOND * IDLE_S, Counter(text[:60] for text in texts)


def test_a_busy_process_notifies_twenty_times_a_second_at_most(handlers, monkeypatch):
    clock = SimpleNamespace(now=time.monotonic(), monotonic=lambda: clock.now)
    monkeypatch.setattr(wakeup, "time", clock)
    monkeypatch.setattr(wakeup, "_last_notified", {})
    monkeypatch.setattr(wakeup, "quiet_of", cache(lambda _database: Quiet(bytearray(Quiet.BYTES))))
    with counted() as statements:
        for _commit in range(400):
            publish("counted.x")
            clock.now += 0.005
        texts = statements.texts()
    assert texts.count("COMMIT") == 400
    # In two seconds.
    assert 30 <= sum(text.startswith("NOTIFY") for text in texts) <= 40


@pytest.mark.parametrize(("commits_per_s", "most_per_s"), [(50, 50), (180, 90), (500, 22)])
def test_a_host_of_many_processes_notifies_the_less_the_busier_it_is(
    handlers, monkeypatch, commits_per_s, most_per_s
):
    clock = SimpleNamespace(now=time.monotonic(), monotonic=lambda: clock.now)
    monkeypatch.setattr(wakeup, "time", clock)
    monkeypatch.setattr(wakeup, "quiet_of", cache(lambda _database: Quiet(bytearray(Quiet.BYTES))))
    with counted() as statements:
        for _commit in range(400):
            # As if it were another process each time.
            monkeypatch.setattr(wakeup, "_last_notified", {})
            publish("counted.x")
            clock.now += 1 / commits_per_s
        texts = statements.texts()
    assert texts.count("COMMIT") == 400
    most = most_per_s * 400 / commits_per_s
    assert 0.7 * most <= texts.count("NOTIFY outbox_wakeup") <= most + 1
