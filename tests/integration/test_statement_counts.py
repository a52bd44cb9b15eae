"""The number of statements of a busy relay, of an idle relay, and of busy publishers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import dramatiq
import pytest
from django.db import transaction
from dramatiq.broker import MessageProxy

import outbox
from outbox.confirmations import FlushPolicy, confirmations
from outbox.models import Delivery
from outbox.publishing.notify import Notifier
from outbox.publishing.notify_throttle import NotifyThrottle
from outbox.registry import registry
from relay.loop import Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import publish, relay_all
from tests.support.statements import counted
from tests.testapp.handlers import QUEUE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres, pytest.mark.slow]

EVENTS = 2000
MOST_PER_EVENT = 0.05
MOST_PER_SECOND = 2
IDLE_S = 600
# Until the checks are a second apart.
WARM_UP_S = 10


@pytest.fixture
def handlers() -> Iterator[None]:
    """Declare a handler of each kind, since the relay has additional statements for each."""
    outbox.handler("counted.*", name="counted", queue_name=QUEUE)(lambda event: None)
    outbox.handler("ordered.*", name="counted_ordered", queue_name=QUEUE, ordered=True)(lambda event: None)
    outbox.handler(
        "counted_batch.*",
        name="counted_batch",
        queue_name=QUEUE,
        batch_size=500,
        batch_wait=timedelta(hours=1),
    )(lambda events: None)
    dramatiq.get_broker().flush_all()
    yield
    for name in ("counted", "counted_ordered", "counted_batch"):
        registry.remove(name)
    dramatiq.get_broker().flush_all()


@pytest.mark.parametrize("topic", ["counted.x", "counted_batch.x"])
def test_an_event_takes_at_most_a_twentieth_of_a_statement(handlers, monkeypatch, topic):
    # Outcomes are written by number or by time; on a slow machine the time must not come first.
    monkeypatch.setattr(confirmations, "policy", FlushPolicy(flush_interval_s=60))
    with transaction.atomic():
        outbox.publish_many({"topic": topic, "payload": n} for n in range(EVENTS))
    with counted() as statements:
        # On a slow machine scans would take long, and the relay would repeat them from the start.
        relay_all(batch_size=500, clock=Clock())
        run_all_messages()
        # Ends the thread that writes the outcomes.
        confirmations.close()
        texts = statements.texts()
    assert list(Delivery.objects.values_list("state").distinct()) == [("succeeded",)]
    assert {"BEGIN", "COMMIT"} <= set(texts)
    assert len(texts) <= EVENTS * MOST_PER_EVENT, texts


def run_all_messages() -> None:
    """Run all messages of the queue through Dramatiq's middleware, as a worker with one thread does."""
    broker = dramatiq.get_broker()
    queue = broker.queues[QUEUE]
    while not queue.empty():
        message = MessageProxy(dramatiq.Message.decode(queue.get()))
        queue.task_done()
        broker.emit_before("process_message", message)
        broker.get_actor(message.actor_name)(*message.args, **message.kwargs)
        broker.emit_after("process_message", message, result=None)


class Hours(Stop):
    """A clock that waits advance; after enough time it requests the stop of the relay."""

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
def test_an_idle_relay_sends_at_most_two_statements_a_second(handlers, monkeypatch, listen):
    publish("counted.x", delay=timedelta(days=1))
    publish("counted_batch.x")
    with Hours() as hours, counted() as statements:
        hours.texts = statements.texts
        options = RelayOptions(
            database="default", listen=listen, maintain_beside=False, clock=hours.monotonic
        )
        Relay(options, stop=hours).run()
        texts = statements.texts()[hours.at_rest :]
    assert len([text for text in texts if "outbox_delivery" in text]) >= IDLE_S, "it did not check"
    assert any("outbox_processheartbeat" in text for text in texts)
    assert len(texts) <= MOST_PER_SECOND * IDLE_S, Counter(text[:60] for text in texts)


class Clock:
    """A clock that only the test advances, in seconds."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def unused_throttle() -> NotifyThrottle:
    return NotifyThrottle(bytearray(NotifyThrottle.BYTES))


def process_of(throttle: NotifyThrottle, clock: Clock) -> Notifier:
    """Return the notifier of a new process on the host of a throttle."""
    return Notifier(clock=clock, throttle=lambda _database: throttle)


@pytest.mark.parametrize(("commits_per_s", "least", "most"), [(40, 400, 400), (2000, 20, 35)])
def test_each_commit_notifies_unless_the_host_is_busy(handlers, monkeypatch, commits_per_s, least, most):
    clock, throttle = Clock(), unused_throttle()
    with counted() as statements:
        for _commit in range(400):
            # Each commit is another process's.
            monkeypatch.setattr("outbox.publishing.notify.notifier", process_of(throttle, clock))
            publish("counted.x")
            clock.now += 1 / commits_per_s
        texts = statements.texts()
    assert texts.count("COMMIT") == 400
    assert least <= texts.count("NOTIFY outbox_wakeup") <= most
