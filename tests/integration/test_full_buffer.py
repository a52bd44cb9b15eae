"""Workers whose buffer of outcomes is full, as the database is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from django.db import OperationalError
from dramatiq.common import dq_name

import outbox
from outbox.confirmations import Buffer, FlushPolicy, confirmations, statements
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.support.data_flow import clear_broker, finish, flush, publish, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE as SHARED_QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

# A queue of its own: a stopped worker returns fetched messages, which StubBroker then counts twice.
QUEUE = f"{SHARED_QUEUE}_full_buffer"
THREADS = 4
# Fewer than a worker fetches, so that it goes on fetching.
EVENTS = THREADS + 2


@pytest.fixture
def runs() -> Iterator[list[int]]:
    """Declare a handler, and return the payloads of its runs."""
    seen: list[int] = []

    @outbox.handler("full.buffer", name="full_buffer", queue_name=QUEUE)
    def run(event: outbox.ReceivedEvent) -> None:
        seen.append(event.payload)

    clear_broker()
    yield seen
    registry.remove("full_buffer")
    flush()
    clear_broker()
    for name in (QUEUE, dq_name(QUEUE)):
        dramatiq.get_broker().queues.pop(name, None)
    dramatiq.get_broker().delay_queues.discard(dq_name(QUEUE))


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Refuse to write outcomes, of which one fills the buffer; return a function that ends the outage."""
    flush()
    write, over = statements.write, threading.Event()

    def refuse(alias: str, buffer: Buffer) -> Any:
        if over.is_set():
            return write(alias, buffer)
        raise OperationalError("the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(statements, "write", refuse)
        patch.setattr(confirmations, "policy", FlushPolicy(max_buffered=1, close_timeout_s=1))
        yield over.set
        over.set()
        flush()


def dispatched() -> list[Event]:
    events = [publish("full.buffer", n) for n in range(EVENTS)]
    relay_all()
    return events


def test_a_worker_runs_no_more_messages_until_outcomes_are_written(
    runs: list[int], away: Callable[[], None]
) -> None:
    events = dispatched()
    with worker():
        wait_until(lambda: confirmations.is_full("default"), what="the buffer to be full")
        # The thread that consumes messages, and that sends heartbeats, does not wait.
        stranger: dramatiq.Message[Any] = dramatiq.Message(QUEUE, "absent", (), {}, {})
        dramatiq.get_broker().enqueue(stranger)
        waiting = dramatiq.get_broker().queues[QUEUE]
        wait_until(lambda: waiting.qsize() == 0, what="the thread that consumes messages to fetch another")
        assert 1 <= len(runs) <= THREADS
        away()
        for event in events:
            assert finish(event) == {"full_buffer": "succeeded"}
    assert sorted(runs) == list(range(EVENTS))


def test_a_worker_stops_while_its_buffer_is_full(runs: list[int], away: Callable[[], None]) -> None:
    dispatched()
    with worker():
        wait_until(lambda: confirmations.is_full("default"), what="the buffer to be full")
    # The context has waited for the threads of the worker.
    assert runs
    away()
    flush()
    assert Delivery.objects.filter(state="succeeded").count() == len(runs)
