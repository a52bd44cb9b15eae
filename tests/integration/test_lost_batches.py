"""The memory and the next claim of a relay whose broker loses a batch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import dramatiq
import pytest
from django.db import transaction

import outbox
from outbox.errors import BrokerUnavailable
from outbox.models import Delivery
from outbox.registry import registry
from relay.backoff import Backoff
from relay.claimed_delivery import ClaimedDelivery
from relay.loop import Relay
from relay.messages.single import OutgoingMessage
from relay.publishers.generic import GenericPublisher
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import clear_broker, flush
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


class Slow(GenericPublisher):
    """A publisher that loses a batch of more than two messages, and then keeps itself in a cycle."""

    batches: list[int] = []

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> Any:
        self.batches.append(len(outgoing))
        if len(outgoing) > 2:
            try:
                raise TimeoutError("no answer")
            except TimeoutError as error:
                # As client libraries do: the error's traceback holds this frame, and the frame the error.
                kept = error
                raise BrokerUnavailable(str(kept)) from kept
        return super().publish(outgoing, timeout_s=timeout_s)


class Counting(Stop):
    """A stop whose waits end at once, and count the claimed deliveries that this relay has in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[int] = []
        # Other tests may have left some, such as in the traceback of an expected error.
        self._others = claimed_deliveries()

    def wait(self, timeout_s: float, *, also: Sequence[int] = ()) -> bool:
        others = set(map(id, self._others))
        self.alive.append(sum(id(one) not in others for one in claimed_deliveries()))
        return False


def claimed_deliveries() -> list[ClaimedDelivery]:
    """Return the claimed deliveries that are in memory."""
    # isinstance() would evaluate the lazy objects of other tests.
    return [one for one in gc.get_objects() if type(one) is ClaimedDelivery]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Replace the publisher by a slow one; return the sizes of its batches."""
    outbox.handler("lost.mail", name="lost.mail", queue_name=QUEUE)(lambda event: None)
    clear_broker()
    monkeypatch.setattr(Slow, "batches", [])
    monkeypatch.setattr("relay.dispatch.publisher_for", Slow)
    yield Slow.batches
    registry.remove("lost.mail")
    flush()
    clear_broker()


def publish_many(count: int) -> None:
    with transaction.atomic():
        outbox.publish_many([{"topic": "lost.mail"} for _ in range(count)])


def run_relay(stop: Stop) -> None:
    options = RelayOptions(database="default", drain=True, batch_size=16)
    Relay(options, stop=stop, outage=Backoff(jitter=lambda _low, high: high)).run()


def test_a_lost_batch_is_halved_until_the_broker_takes_it(batches: list[int]) -> None:
    publish_many(16)
    with Counting() as stop:
        run_relay(stop)
    assert batches[:4] == [16, 8, 4, 2]
    assert set(Delivery.objects.values_list("state", "attempts", "refusals")) == {("dispatched", 1, 0)}
    assert dramatiq.get_broker().queues[QUEUE].qsize() == 16  # type: ignore[attr-defined]


def test_a_failed_batch_leaves_no_rows_in_memory(batches: list[int]) -> None:
    publish_many(16)
    gc.disable()
    try:
        with Counting() as stop:
            run_relay(stop)
    finally:
        gc.enable()
    assert stop.alive[:3] == [0, 0, 0]
