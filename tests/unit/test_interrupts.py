"""Time limits and shutdowns may interrupt a worker's thread at any moment: nothing is lost or locked."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
from dramatiq import Message, MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Shutdown

import outbox
from outbox.confirmations import Buffer, Confirmations, FlushPolicy, statements
from outbox.confirmations.outcome import Outcome
from outbox.contexts import current_context, current_event
from outbox.events import DeliveryRef, ReceivedEvent
from outbox.models import Delivery
from outbox.run import Run, current_run
from outbox.worker import middleware
from outbox.worker.inflight_log import InflightLog
from outbox.worker.middleware import OutboxMiddleware
from outbox.worker.poison import quarantine
from outbox.worker.run_context import RunContext
from tests.support.processes import wait_until

PACKAGE = str(Path(outbox.__file__).parent)
AT_ONCE = FlushPolicy(flush_interval_s=0)


def interrupted_everywhere(set_up: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Call a function again and again, interrupted at its first step, its second and so on, until it ends.

    Yields:
        The number of steps before the interrupt, after each call.
    """
    for moment in count():
        work = set_up()
        with Interrupting(moment) as interrupt, suppress(Shutdown):
            work()
        yield moment
        if not interrupt.reached:
            return


class Interrupting:
    """Raises `Shutdown` at the nth moment at which CPython may raise asynchronous exceptions in this thread.

    These moments are the starts of functions and the ends of built-ins; CPython also checks at ends of loops.
    """

    def __init__(self, moment: int) -> None:
        self.reached = False
        self._left = moment

    def __enter__(self) -> Interrupting:
        self._before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        inside = name.startswith(PACKAGE) or name == threading.__file__
        if inside and event in ("call", "c_return") and not self.reached:
            self._left -= 1
            if self._left < 0:
                self.reached = True
                raise Shutdown


def a_run(delivery: int = 1) -> Run:
    event = ReceivedEvent(uuid4(), "shop.paid", headers={"context": {"tenant": "A"}})
    return Run("default", "handler", "id", [DeliveryRef(delivery, str(event.id))], [event])


def ends_in_another_thread(work: Callable[[], object]) -> bool:
    """Return whether a function ends soon in another thread: it does if the locks that it takes are free."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def quarantine_is_free() -> bool:
    """Return whether another thread can enter the quarantine."""
    entered: list[bool] = []

    def enter() -> None:
        entered.append(quarantine.enter())
        quarantine.leave()

    return ends_in_another_thread(enter) and entered == [True]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the ids of the written deliveries; nothing is written to the database."""

    def write(_: str, part: Buffer) -> tuple[Buffer, list[Outcome]]:
        written.update(one.id for one in part.outcomes)
        return Buffer(), []

    written: set[int] = set()
    monkeypatch.setattr(statements, "attempt", write)
    return written


def test_outcomes_can_be_added_after_any_interrupt(written: set[int]) -> None:
    confirmations = Confirmations(policy=AT_ONCE)

    def set_up() -> Callable[[], object]:
        # The thread is idle when the interrupt comes.
        written.clear()
        confirmations.add(*Outcome.succeeded(a_run(0)))
        wait_until(lambda: 0 in written and confirmations.flush(), what="the first outcome to be written")
        return lambda: confirmations.add(*Outcome.succeeded(a_run(1)))

    for number in interrupted_everywhere(set_up):
        # An interrupted outcome is written with the next outcome, or when the worker ends.
        add_another = lambda: confirmations.add(*Outcome.succeeded(a_run(2)))  # noqa: E731
        assert ends_in_another_thread(add_another), number
        wait_until(lambda: 2 in written, what=f"the next outcome to be written, after moment {number}")
    assert number > 20
    confirmations.close()
    assert written == {0, 1, 2}


def test_an_outcome_of_an_unknown_database_does_not_keep_others_from_being_written(
    written: set[int],
) -> None:
    confirmations = Confirmations(policy=AT_ONCE)
    for delivery in range(5):
        confirmations.add(*Outcome.succeeded(a_run(delivery)))
        wait_until(lambda: delivery in written, what="an outcome to be written")  # noqa: B023
        confirmations.add(*Outcome.succeeded(replace(a_run(), database="absent")))
    confirmations.close()


def test_an_interrupted_flush_keeps_or_writes_every_outcome(written: set[int]) -> None:
    confirmations: list[Confirmations] = []

    def set_up() -> Callable[[], object]:
        confirmations[:] = [Confirmations(policy=FlushPolicy(flush_size=2), background=False)]
        written.clear()
        for delivery in range(5):
            confirmations[0].add(*Outcome.succeeded(a_run(delivery)))
        return confirmations[0].flush

    for number in interrupted_everywhere(set_up):
        # Private names, as they alone show whether a thread would flush the outcomes that are left.
        flusher = confirmations[0].flusher("default")
        left = {one.id for buffer in flusher._buffers.values() for one in buffer.outcomes}
        assert {*left, *written} == set(range(5)), number
        assert bool(flusher._backlog) >= bool(left), number
        assert ends_in_another_thread(confirmations[0].flush), number
        assert written == set(range(5)), number
    assert not left
    assert number > 20


def test_a_run_context_that_is_left_after_any_interrupt_restores_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflight_log = InflightLog(tmp_path, "site")
    monkeypatch.setattr(quarantine, "inflight_logs", {"default": inflight_log})
    free = inflight_log.free_slots
    run_context: list[RunContext] = []

    def set_up() -> Callable[[], object]:
        def work() -> None:
            quarantine.enter()
            run_context[:] = [RunContext(a_run(), alone=True)]
            with run_context[0]:
                assert current_context() == {"tenant": "A"}

        run_context.clear()
        return work

    for number in interrupted_everywhere(set_up):
        for one in run_context:
            one.__exit__()
        if not run_context:
            # The middleware does the same when there is no run context to leave.
            quarantine.leave()
        assert (current_context(), current_event(), current_run.get()) == ({}, None, None), number
        assert inflight_log.read() == [], number
        # A slot may be lost that was taken at the moment of the interrupt.
        assert inflight_log.free_slots >= free - 1, number
        free = inflight_log.free_slots
        assert quarantine_is_free(), number
    assert number > 20
    inflight_log.delete()


def a_message(message_id: str) -> MessageProxy:
    """Return a message as a worker passes it to its middleware."""
    message = Message(queue_name="q", actor_name="a", args=(), kwargs={}, options={}, message_id=message_id)
    return MessageProxy(message)


def test_an_interrupted_report_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt_once(*outcomes: Outcome) -> None:
        if not reports:
            reports.append([])
            raise Shutdown
        reports.append([one.state for one in outcomes])

    reports: list[list[str]] = []
    monkeypatch.setattr(middleware.confirmations, "add", interrupt_once)
    broker, run = StubBroker(middleware=[]), a_run()
    message: Any = a_message(run.message_id)
    hooks = OutboxMiddleware()
    middleware._run_context.set(RunContext(run))
    with pytest.raises(Shutdown):
        hooks.after_process_message(broker, message)
    # Dramatiq calls the hook again with the error of the hook.
    hooks.after_process_message(broker, message, exception=Shutdown())
    hooks.after_process_message(broker, message)
    # Another message's run context is ignored.
    middleware._run_context.set(RunContext(run))
    message.message_id = "other"
    hooks.after_process_message(broker, message)
    middleware._run_context.set(None)
    assert reports == [[], [Delivery.State.FAILED]]


def test_the_outer_run_is_current_again_after_a_nested_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware.confirmations, "add", lambda *_: None)
    outer, inner = RunContext(a_run()), replace(a_run(2), message_id="inner")
    middleware._run_context.set(RunContext(inner, outer=outer))
    message: Any = a_message("inner")
    OutboxMiddleware().after_process_message(StubBroker(middleware=[]), message)
    assert middleware._run_context.get() is outer
    middleware._run_context.set(None)


def test_a_second_report_after_a_final_outcome_changes_nothing() -> None:
    """A report that is interrupted at its end is repeated."""
    buffer = Buffer()
    run = a_run()
    for outcome in (*Outcome.succeeded(run), *Outcome.failed(run, "interrupted")):
        buffer.add(outcome)
    assert [one.state for one in buffer.outcomes.values()] == [Delivery.State.SUCCEEDED]
