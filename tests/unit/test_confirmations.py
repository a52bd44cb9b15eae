"""The buffers of a process: their content, their flushes, and that no outcome is lost."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from logging.handlers import BufferingHandler
from sys import getsizeof
from typing import Any

import pytest
from django.db import DataError, OperationalError
from dramatiq.middleware import TimeLimitExceeded

from outbox.confirmations import Buffer, Confirmations, FlushPolicy, capture_outcomes, statements
from outbox.confirmations.outcome import Outcome
from outbox.events import DeliveryRef
from outbox.models import Tally
from tests.support.processes import wait_until

SUCCEEDED, FAILED, PENDING = "succeeded", "failed", "pending"
ERROR = "ValueError: no such mailbox\n" * 100
EVENT_ID = "0190a0b0-0000-7000-8000-000000000000"

# Only size and shutdown start a flush, and a failed flush is retried soon.
BY_SIZE = FlushPolicy(flush_interval_s=600, min_retry_s=0.01, max_retry_s=0.01)
BY_TIME = replace(BY_SIZE, flush_interval_s=FlushPolicy.flush_interval_s)

MakeConfirmations = Callable[..., Confirmations]


class Database:
    """A database in memory, in place of the transaction of a flush; it can be away."""

    def __init__(self) -> None:
        self.away = False
        self.failed_writes = 0
        self.writes: list[list[Outcome]] = []
        self.tallies: dict[str, Tally] = {}

    def write(self, database: str, buffer: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
        """Write a buffer, as `statements.write` does."""
        if self.away:
            self.failed_writes += 1
            raise OperationalError("the server went away")
        self.writes.append(list(buffer.outcomes.values()))
        for handler, tally in buffer.tallies.items():
            self.tallies.setdefault(handler, Tally()).add(tally)
        return Buffer(), set(buffer.outcomes)

    @property
    def written(self) -> list[Outcome]:
        """Return all written outcomes."""
        return [outcome for write in self.writes for outcome in write]

    @property
    def states(self) -> dict[int, str]:
        """Return the last state of each delivery."""
        return {outcome.delivery_id: outcome.state for outcome in self.written}


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    """Return a database that is not away."""
    database = Database()
    monkeypatch.setattr(statements, "write", database.write)
    return database


@pytest.fixture
def make_confirmations(database: Database) -> Iterator[MakeConfirmations]:
    """Return a function that makes confirmations, which are closed after the test."""
    made: list[Confirmations] = []

    def make(policy: FlushPolicy = BY_SIZE, **options: Any) -> Confirmations:
        made.append(Confirmations(policy=policy, **options))
        return made[-1]

    yield make
    database.away = False
    for confirmations in made:
        confirmations.close()


@pytest.fixture
def by_size(make_confirmations: MakeConfirmations) -> Confirmations:
    return make_confirmations(BY_SIZE)


@pytest.fixture
def by_time(make_confirmations: MakeConfirmations) -> Confirmations:
    return make_confirmations(BY_TIME)


def outcome(delivery_id: int = 1, state: str = SUCCEEDED, **fields: Any) -> Outcome:
    """Return an outcome as a worker reports it."""
    result = {SUCCEEDED: "succeeded", FAILED: "failed", PENDING: "retried"}.get(state, "")
    values = {"database": "default", "handler": "mail", "result": result, "duration_s": 0.01, **fields}
    return Outcome(delivery=DeliveryRef(delivery_id, EVENT_ID), state=state, **values)


# ---------------------------------------------------------------- the content of a buffer


def test_the_latest_outcome_of_a_delivery_is_written(by_size: Confirmations, database: Database) -> None:
    by_size.add(outcome(state=PENDING))
    by_size.add(outcome(state=FAILED))
    assert by_size.flush()
    assert [one.state for one in database.written] == [FAILED]


def test_an_outcome_of_a_duplicate_does_not_replace_success(
    by_size: Confirmations, database: Database
) -> None:
    by_size.add(outcome(state=SUCCEEDED), outcome(state=FAILED), outcome(state=PENDING))
    assert by_size.flush()
    assert [one.state for one in database.written] == [SUCCEEDED]


def test_every_run_is_counted_though_only_the_last_outcome_is_written(
    by_size: Confirmations, database: Database
) -> None:
    by_size.add(outcome(state=PENDING), outcome(state=PENDING), outcome(state=SUCCEEDED))
    by_size.flush()
    tally = database.tallies["mail"]
    assert (tally.retried, tally.succeeded, sum(tally.histogram)) == (2, 1, 3)


def test_an_outcome_of_an_unknown_database_is_logged_and_dropped(
    by_size: Confirmations, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    by_size.add(outcome(1, database="absent"), outcome(2))
    by_size.flush()
    assert set(database.states) == {2}
    assert "unknown database 'absent'" in caplog.text


def test_with_stats_off_only_outcomes_are_written(
    by_size: Confirmations, database: Database, settings: Any
) -> None:
    settings.OUTBOX = {"STATS": False}
    by_size.add(outcome())
    by_size.count_dispatched("default", {"mail": 1})
    by_size.flush()
    assert set(database.states) == {1}
    assert database.tallies == {}


def test_captured_outcomes_are_not_buffered(by_size: Confirmations, database: Database) -> None:
    with capture_outcomes() as outcomes:
        by_size.add(outcome(1))
    by_size.add(outcome(2))
    by_size.flush()
    assert [one.delivery_id for one in outcomes] == [1]
    assert set(database.states) == {2}


@pytest.mark.parametrize("values", [{"flush_size": 0}, {"flush_interval_s": -1}, {"min_retry_s": 1}])
def test_a_policy_that_could_not_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} is .*; give at"):
        FlushPolicy(**values)


# ---------------------------------------------------------------- a full buffer


@pytest.fixture(params=["number", "bytes"])
def bounded(request: pytest.FixtureRequest, make_confirmations: MakeConfirmations) -> Confirmations:
    """Return confirmations that three failures fill, by their number or by the size of their errors."""
    bounds = {"number": {"max_buffered": 3}, "bytes": {"max_text_bytes": 3 * getsizeof(ERROR)}}
    return make_confirmations(replace(BY_TIME, flush_interval_s=0.01, **bounds[request.param]))


@pytest.fixture
def logged() -> Iterator[BufferingHandler]:
    """Return what the confirmations log; `caplog` misses what threads log between the phases of a test."""
    logger, handler = logging.getLogger("outbox.confirmations"), BufferingHandler(capacity=10_000)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def waiting(
    bounded: Confirmations, database: Database, logged: BufferingHandler
) -> Iterator[threading.Thread]:
    """Return a thread that waits for room, while the database is away."""
    database.away = True
    bounded.add(outcome(1, FAILED, error=ERROR), outcome(2, FAILED, error=ERROR))
    bounded.wait_for_room("default")  # there is room for one more
    bounded.add(outcome(3, FAILED, error=ERROR))
    assert bounded.is_full("default")
    thread = threading.Thread(target=bounded.wait_for_room, args=["default"])
    thread.start()
    yield thread
    bounded.end_waits()
    thread.join()


def test_a_thread_waits_while_the_buffer_is_full_and_no_outcome_is_dropped(
    bounded: Confirmations, database: Database, waiting: threading.Thread, logged: BufferingHandler
) -> None:
    def times_reported() -> int:
        text = "the buffer of outcomes of database 'default' is full; workers wait"
        return [one.getMessage() for one in logged.buffer].count(text)

    wait_until(lambda: times_reported() > 0, what="the thread to wait")
    failed = database.failed_writes
    wait_until(lambda: database.failed_writes > failed + 2, what="more failed flushes")
    assert waiting.is_alive()
    database.away = False
    waiting.join(60)
    assert not waiting.is_alive()
    wait_until(lambda: len(database.states) == 3, what="all outcomes to be written")
    assert not bounded.is_full("default")
    assert times_reported() == 1


def test_a_shutdown_ends_the_waits_and_leaves_the_outcomes_in_the_buffer(
    bounded: Confirmations, database: Database, waiting: threading.Thread
) -> None:
    bounded.end_waits()
    waiting.join(60)
    assert not waiting.is_alive()
    database.away = False
    bounded.close()
    assert set(database.states) == {1, 2, 3}


def test_threads_wait_again_after_a_shutdown(
    bounded: Confirmations, database: Database, waiting: threading.Thread
) -> None:
    bounded.end_waits()
    bounded.close(timeout_s=0)
    again = threading.Thread(target=bounded.wait_for_room, args=["default"])
    again.start()
    failed = database.failed_writes
    wait_until(lambda: database.failed_writes > failed + 2, what="more failed flushes")
    assert again.is_alive()
    database.away = False
    again.join(60)
    assert not again.is_alive()


def test_a_full_database_does_not_make_threads_of_another_wait(
    bounded: Confirmations, waiting: threading.Thread
) -> None:
    bounded.wait_for_room("second")
    assert waiting.is_alive()


def test_the_size_of_a_replaced_outcome_no_longer_counts() -> None:
    buffer = Buffer()
    buffer.add(outcome(1, PENDING, error=ERROR, message_options=ERROR))
    assert buffer.text_bytes == 2 * getsizeof(ERROR)
    buffer.add(outcome(1, FAILED, error="x"))
    assert buffer.text_bytes == getsizeof("x") + getsizeof("")
    buffer.add(outcome(1, SUCCEEDED))
    buffer.add(outcome(1, FAILED, error=ERROR))
    assert buffer.text_bytes == 0
    older = Buffer.from_outcomes([outcome(2, FAILED, error=ERROR)])
    buffer.merge_older(older)
    assert (
        buffer.text_bytes
        == sum(part.text_bytes for part in buffer.split(1))
        == getsizeof(ERROR) + getsizeof("")
    )


# ---------------------------------------------------------------- flushes


def test_a_full_buffer_is_flushed_at_once(make_confirmations: MakeConfirmations, database: Database) -> None:
    confirmations = make_confirmations(replace(BY_SIZE, flush_size=50))
    confirmations.add(outcome(1))
    confirmations.add(*map(outcome, range(2, 50)))
    assert database.written == []
    confirmations.add(outcome(50))
    wait_until(lambda: len(database.written) == 50, what="a flush by size")


def test_a_single_outcome_is_flushed_after_the_interval(by_time: Confirmations, database: Database) -> None:
    by_time.add(outcome())
    wait_until(lambda: database.written, what="a flush by time")


def test_outcomes_wait_until_the_database_is_back(by_time: Confirmations, database: Database) -> None:
    database.away = True
    by_time.add(outcome(1), outcome(2, PENDING))
    wait_until(lambda: database.failed_writes, what="a failed flush")
    by_time.add(outcome(2, FAILED), outcome(3))
    by_time.count_dispatched("default", {"mail": 3})
    failed = database.failed_writes
    wait_until(lambda: database.failed_writes > failed + 1, what="more failed flushes")
    assert database.written == []
    database.away = False
    wait_until(lambda: len(database.states) == 3, what="the outcomes to be written")
    assert database.states == {1: SUCCEEDED, 2: FAILED, 3: SUCCEEDED}
    tally = database.tallies["mail"]
    assert (tally.dispatched, tally.succeeded, tally.retried, tally.failed) == (3, 2, 1, 1)


@pytest.mark.parametrize("written", [0, 1])
def test_an_interrupted_flush_loses_no_outcome(
    make_confirmations: MakeConfirmations,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    confirmations = make_confirmations(replace(BY_SIZE, flush_size=10), background=False)
    confirmations.add(*map(outcome, range(30)))
    confirmations.count("metered", "succeeded", 0.1)

    def be_interrupted(name: str, buffer: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
        if len(database.writes) == written:
            raise TimeLimitExceeded("now")
        return database.write(name, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(statements, "write", be_interrupted)
        with pytest.raises(TimeLimitExceeded):
            confirmations.flush()
    confirmations.add(outcome(30))
    assert confirmations.flush()
    assert sorted(one.delivery_id for one in database.written) == list(range(31))
    assert {name: tally.succeeded for name, tally in database.tallies.items()} == {"mail": 31, "metered": 1}


def test_success_before_an_outage_is_not_replaced_during_it(
    by_time: Confirmations, database: Database
) -> None:
    database.away = True
    by_time.add(outcome(1, SUCCEEDED))
    wait_until(lambda: database.failed_writes, what="a failed flush")
    by_time.add(outcome(1, FAILED))
    database.away = False
    wait_until(lambda: database.written, what="the outcome to be written")
    assert [one.state for one in database.written] == [SUCCEEDED]


def test_an_outcome_of_a_locked_row_is_retried(
    by_size: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = outcome(2)
    monkeypatch.setattr(
        statements, "write", lambda _alias, _buffer: (Buffer.from_outcomes([locked]), {outcome(1).delivery})
    )
    by_size.add(outcome(1), locked)
    assert not by_size.flush()
    monkeypatch.setattr(statements, "write", database.write)
    wait_until(by_size.flush, what="the locked row to be written")
    assert database.written == [locked]


def test_an_outcome_with_an_ordering_key_is_flushed_at_once_and_soon_retried(
    make_confirmations: MakeConfirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = outcome(1, ordering_key="a")
    locks = [True]

    def write(alias: str, buffer: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
        if locks and locks.pop():
            return Buffer.from_outcomes([first]), set()
        return database.write(alias, buffer)

    monkeypatch.setattr(statements, "write", write)
    monkeypatch.setattr(statements, "unblock_keys", lambda _alias, _keys: set())
    # A locked row is no outage: the first retry comes after the shortest delay.
    confirmations = make_confirmations(replace(BY_SIZE, max_retry_s=600))
    confirmations.add(first)
    wait_until(lambda: database.written == [first], 20, "the outcome to be written")


def test_a_refused_outcome_does_not_keep_others_from_being_written(
    by_size: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one: list[int] = []

    def refuse(alias: str, buffer: Buffer) -> Buffer:
        raise DataError("value out of range")

    def write_one_by_one(alias: str, buffer: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
        one_by_one.extend(delivery.id for delivery in buffer.outcomes)
        return Buffer(), set(buffer.outcomes)

    monkeypatch.setattr(statements, "write", refuse)
    monkeypatch.setattr(statements, "write_one_by_one", write_one_by_one)
    by_size.add(outcome(1), outcome(2))
    assert by_size.flush()
    assert one_by_one == [1, 2]


# ---------------------------------------------------------------- the thread, and its end


def test_closing_flushes_and_ends_the_thread(by_size: Confirmations, database: Database) -> None:
    by_size.add(outcome())
    thread = by_size.flusher("default").thread
    by_size.close()
    assert database.states == {1: SUCCEEDED}
    assert thread is not None
    assert not thread.is_alive()


def test_an_outcome_after_closing_starts_a_new_thread(by_time: Confirmations, database: Database) -> None:
    by_time.add(outcome(1))
    by_time.close()
    by_time.add(outcome(2))
    wait_until(lambda: len(database.written) == 2, what="a flush after closing")


def test_closing_without_outcomes_writes_nothing(by_time: Confirmations, database: Database) -> None:
    by_time.close()
    assert database.writes == []


def test_closing_waits_for_a_database_that_comes_back(by_time: Confirmations, database: Database) -> None:
    database.away = True
    by_time.add(outcome())
    threading.Timer(0.1, setattr, (database, "away", False)).start()
    by_time.close(timeout_s=30)
    assert database.states == {1: SUCCEEDED}


def test_closing_ends_after_its_timeout_and_logs_unconfirmed_outcomes(
    by_time: Confirmations, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.away = True
    by_time.add(outcome(1), outcome(2))
    thread = by_time.flusher("default").thread
    by_time.close(timeout_s=0.05)
    assert "2 outcomes are not confirmed yet" in caplog.text
    wait_until(lambda: thread and not thread.is_alive(), what="the thread to end")
    database.away = False
    assert by_time.flush()
    assert set(database.states) == {1, 2}


def test_the_thread_stays_when_another_thread_has_flushed(by_time: Confirmations) -> None:
    by_time.add(outcome(1))
    thread = by_time.flusher("default").thread
    assert thread is not None
    # The thread waits for the flush interval, as there is an outcome. Only a private name shows the wait.
    wait_until(lambda: by_time.flusher("default")._changed._waiters, what="the thread to wait")  # type: ignore[attr-defined]
    assert by_time.flush()
    thread.join(3 * BY_TIME.flush_interval_s)
    # Outcomes that are added while a thread ends would have no thread to write them.
    assert thread.is_alive()


def test_closing_logs_the_outcomes_of_a_flush_that_does_not_end(
    by_time: Confirmations,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, end = threading.Event(), threading.Event()

    def write_late(alias: str, buffer: Buffer) -> tuple[Buffer, set[DeliveryRef]]:
        started.set()
        end.wait(30)
        return database.write(alias, buffer)

    monkeypatch.setattr(statements, "write", write_late)
    by_time.add(outcome(1), outcome(2))
    assert started.wait(30)
    by_time.close(timeout_s=0.05)
    end.set()
    assert "2 outcomes are not confirmed yet" in caplog.text
    wait_until(lambda: set(database.states) == {1, 2}, what="the outcomes to be written after all")


def test_a_forked_child_has_no_outcomes_of_its_parent(by_size: Confirmations, database: Database) -> None:
    by_size.add(outcome(1))
    reader, writer = os.pipe()
    child = fork()
    if not child:
        # The parent's thread does not exist in the child, which starts a thread when it needs one.
        has_no_thread = by_size.flusher("default").thread is None
        by_size.add(outcome(2))
        by_size.close(timeout_s=10)
        os.write(writer, f"{has_no_thread} {sorted(database.states)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() == "True [2]"
    os.close(reader)
    os.close(writer)
    by_size.flush()
    assert set(database.states) == {1}


def fork() -> int:
    """Fork without the warning of Python 3.12 and later about the threads that the child does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
