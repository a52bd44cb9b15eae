"""What a time limit or a shutdown leaves behind that interrupts a worker's thread at any moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Shutdown

from outbox import contexts, middleware
from outbox.at_work import AtWork
from outbox.confirmations import flushing
from outbox.confirmations.buffer import Batch
from outbox.confirmations.flushing import Confirmations
from outbox.contexts import current_context, current_event
from outbox.crashes import crashes
from outbox.events import ReceivedEvent
from outbox.journal import Journal
from outbox.middleware import OutboxMiddleware
from outbox.models import Delivery
from outbox.outcomes import Outcome
from outbox.runs import Run, current_run
from tests.processes import wait_until

PACKAGE = str(Path(contexts.__file__).parent)


def interrupted_everywhere(set_up: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Carry out work again and again, interrupted at its first step, its second and so on, until it is not.

    Yields:
        After each time, how many steps there were before the interrupt.
    """
    for moment in count():
        work = set_up()
        with Interrupting(moment) as interrupt, suppress(Shutdown):
            work()
        yield moment
        if not interrupt.reached:
            return


class Interrupting:
    """Raises at the nth moment at which this thread may be interrupted.

    That is when a function begins or a built-in ends; CPython looks for asynchronous exceptions there, and at
    the ends of loops.
    """

    def __init__(self, moment: int) -> None:
        self.reached = False
        self._left = moment

    def __enter__(self) -> Interrupting:
        self._before = sys.getprofile()
        sys.setprofile(self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _notice(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        inside = name.startswith(PACKAGE) or name == threading.__file__
        if inside and event in ("call", "c_return") and not self.reached:
            self._left -= 1
            if self._left < 0:
                self.reached = True
                raise Shutdown


def a_run(delivery: int = 1) -> Run:
    event = ReceivedEvent(uuid4(), "shop.paid", headers={"context": {"tenant": "A"}})
    return Run("default", "handler", "id", [delivery], [event])


def is_free(lock: Any) -> bool:
    """Say whether another thread can take a lock."""
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=5)) or lock.release())
    thread.start()
    thread.join()
    return taken == [True]


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> Confirmations:
    """Return a buffer whose thread never starts."""
    monkeypatch.setattr(Confirmations, "_start", lambda _: None)
    return Confirmations()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return what is written in place of the database, as soon as may be."""

    def write(_: str, piece: Batch) -> tuple[Batch, list[Outcome]]:
        written.update(piece.outcomes)
        return Batch(), []

    written: set[int] = set()
    monkeypatch.setattr(flushing.writing, "attempt", write)
    monkeypatch.setattr(flushing, "FLUSH_INTERVAL_S", 0.0)
    monkeypatch.setattr(flushing, "_close_at_exit", lambda _: None)
    return written


def test_the_buffer_can_be_used_after_any_interrupt(written: set[int]) -> None:
    buffer = Confirmations()

    def set_up() -> Callable[[], object]:
        # So that the thread sleeps as the interrupt comes.
        written.clear()
        buffer.add(*Outcome.succeeded(a_run(0)))
        wait_until(lambda: 0 in written and not buffer._in_hand, what="the thread to have written")
        return lambda: buffer.add(*Outcome.succeeded(a_run(1)))

    for number in interrupted_everywhere(set_up):
        assert is_free(buffer._lock), number
        # What it has kept is written with the next outcome at the latest, or when the worker ends.
        buffer.add(*Outcome.succeeded(a_run(2)))
        wait_until(lambda: 2 in written, what=f"the next one to be written, after moment {number}")
    assert number > 20
    buffer.close()
    assert written == {0, 1, 2}


def test_an_outcome_that_belongs_nowhere_keeps_no_other_from_being_written(written: set[int]) -> None:
    buffer = Confirmations()
    for delivery in range(5):
        buffer.add(*Outcome.succeeded(a_run(delivery)))
        wait_until(lambda: delivery in written, what="an outcome to be written")  # noqa: B023
        buffer.add(*Outcome.succeeded(replace(a_run(), database="absent")))
    buffer.close()


def test_an_interrupted_flush_keeps_or_writes_every_outcome(
    buffer: Confirmations, written: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "FLUSH_SIZE", 2)

    def set_up() -> Callable[[], object]:
        buffer._batches, buffer._waiting = {}, 0
        written.clear()
        for delivery in range(5):
            buffer.add(*Outcome.succeeded(a_run(delivery)))
        return buffer.flush

    for number in interrupted_everywhere(set_up):
        assert is_free(buffer._lock), number
        assert is_free(buffer._flushing), number
        kept = buffer._batches.get("default", Batch()).outcomes
        assert {*kept, *written} == set(range(5)), number
        assert bool(buffer._waiting) >= bool(kept), number
    assert not kept
    assert number > 20


def test_a_run_that_is_left_again_after_any_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "site")
    monkeypatch.setattr(crashes, "_journal", journal)
    free = len(journal._free)
    at_work: list[AtWork] = []

    def set_up() -> Callable[[], object]:
        def work() -> None:
            crashes.claim_solitude()
            at_work[:] = [AtWork(a_run(), alone=True)]
            with at_work[0]:
                assert current_context() == {"tenant": "A"}

        at_work.clear()
        return work

    for number in interrupted_everywhere(set_up):
        for one in at_work:
            one.__exit__()
        if not at_work:
            # As the middleware does when there is no run to leave.
            crashes.end_solitude()
        assert (current_context(), current_event(), current_run.get()) == ({}, None, None), number
        assert journal._memory.find(b"default") < 0 or not any(_noted(journal)), number
        # One that was taken and not used at that moment is not missed.
        free = min(free, len(journal._free) + 1)
        assert is_free(crashes._alone), number
    assert number > 20
    journal.remove()


def _noted(journal: Journal) -> Iterator[int]:
    from outbox.journal import FILE_BYTES, SLOT_BYTES

    for slot in range(0, FILE_BYTES, SLOT_BYTES):
        yield int.from_bytes(journal._memory[slot : slot + 4], "little")


def test_solitude_that_was_claimed_as_the_interrupt_came_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from outbox import packs

    def claim() -> bool:
        crashes._alone.acquire()
        raise Shutdown

    monkeypatch.setattr(crashes, "claim_solitude", claim)
    monkeypatch.setattr(packs.confirmations, "flush", lambda: True)
    worker = packs._PackWorker.__new__(packs._PackWorker)
    with pytest.raises(Shutdown):
        worker._alone(a_run())
    assert is_free(crashes._alone)


def test_a_report_that_is_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_once(*outcomes: Outcome) -> None:
        if not reports:
            reports.append([])
            raise Shutdown
        reports.append([one.status for one in outcomes])

    reports: list[list[str]] = []
    monkeypatch.setattr(middleware.confirmations, "add", refuse_once)
    broker, run = StubBroker(middleware=[]), a_run()
    message: Any = SimpleNamespace(failed=False, message_id=run.message_id)
    hooks = OutboxMiddleware()
    middleware._at_work.set(AtWork(run))
    with pytest.raises(Shutdown):
        hooks.after_process_message(broker, message)
    # As Dramatiq does with what comes out of its hooks.
    hooks.after_process_message(broker, message, exception=Shutdown())
    hooks.after_process_message(broker, message)
    # What is left over, or runs around it, is no other message's.
    middleware._at_work.set(AtWork(run))
    message.message_id = "other"
    hooks.after_process_message(broker, message)
    middleware._at_work.set(None)
    assert reports == [[], [Delivery.Status.FAILED]]


def test_what_runs_around_a_message_goes_on_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware.confirmations, "add", lambda *_: None)
    around, inner = AtWork(a_run()), replace(a_run(2), message_id="inner")
    middleware._at_work.set(AtWork(inner, around=around))
    message: Any = SimpleNamespace(failed=False, message_id="inner")
    OutboxMiddleware().after_process_message(StubBroker(middleware=[]), message)
    assert middleware._at_work.get() is around
    middleware._at_work.set(None)


def test_outcomes_after_an_end_change_nothing() -> None:
    """So that a report that was interrupted once it was made may be followed by another one."""
    batch = Batch()
    run = a_run()
    for outcome in (*Outcome.succeeded(run), *Outcome.failed(run, "interrupted")):
        batch.keep(outcome)
    assert [one.status for one in batch.outcomes.values()] == [Delivery.Status.SUCCEEDED]
