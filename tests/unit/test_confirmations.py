"""The buffer of outcomes: what it keeps, when it flushes, and what it loses (nothing)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DataError, OperationalError
from dramatiq.middleware import TimeLimitExceeded

from outbox.confirmations import Batch, Confirmations, flushing, writing
from outbox.confirmations import buffer as buffering
from outbox.models import Tally
from outbox.outcomes import Outcome
from tests.processes import wait_until

SUCCEEDED, FAILED, DISPATCHED = "succeeded", "failed", "dispatched"


class Database:
    """What the buffer writes to, in the place of the two statements; it can be away."""

    def __init__(self) -> None:
        self.away = False
        self.refused = 0
        self.writes: list[list[Outcome]] = []
        self.tallies: dict[str, Tally] = {}

    def write(self, database: str, batch: Batch) -> tuple[Batch, set[int]]:
        """Stand in for the transaction of a flush."""
        if self.away:
            self.refused += 1
            raise OperationalError("the server went away")
        self.writes.append(list(batch.outcomes.values()))
        for handler, tally in batch.tallies.items():
            self.tallies.setdefault(handler, Tally()).add(tally)
        return Batch(), set(batch.outcomes)

    @property
    def written(self) -> list[Outcome]:
        """Return all outcomes that arrived."""
        return [outcome for write in self.writes for outcome in write]

    @property
    def statuses(self) -> dict[int, str]:
        """Return the last state of each delivery."""
        return {outcome.delivery_id: outcome.status for outcome in self.written}


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    """Return a database that is there, until it is told to be away."""
    database = Database()
    monkeypatch.setattr(writing, "write", database.write)
    monkeypatch.setattr(flushing, "RETRY_INTERVAL_S", 0.01)
    return database


@pytest.fixture
def buffer(database: Database) -> Iterator[Confirmations]:
    """Return a buffer that holds nothing."""
    buffer = Confirmations()
    yield buffer
    database.away = False
    buffer.close()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tick off, so that only size and shutdown flush."""
    monkeypatch.setattr(flushing, "FLUSH_INTERVAL_S", 600)


def outcome(delivery_id: int = 1, status: str = SUCCEEDED, **fields: Any) -> Outcome:
    """Return an outcome as a worker reports it."""
    verdict = {SUCCEEDED: "succeeded", FAILED: "failed", DISPATCHED: "retried"}.get(status, "")
    values = {"database": "default", "handler": "mail", "verdict": verdict, "duration_s": 0.01, **fields}
    return Outcome(delivery_id=delivery_id, status=status, **values)


@pytest.mark.usefixtures("unhurried")
def test_of_two_outcomes_of_a_delivery_the_latest_is_kept(buffer: Confirmations, database: Database) -> None:
    buffer.add(outcome(status=DISPATCHED))
    buffer.add(outcome(status=FAILED))
    assert buffer.flush()
    assert [one.status for one in database.written] == [FAILED]


@pytest.mark.usefixtures("unhurried")
def test_success_settles_a_delivery_whatever_another_copy_reports(
    buffer: Confirmations, database: Database
) -> None:
    buffer.add(outcome(status=SUCCEEDED), outcome(status=FAILED), outcome(status=DISPATCHED))
    assert buffer.flush()
    assert [one.status for one in database.written] == [SUCCEEDED]


@pytest.mark.usefixtures("unhurried")
def test_every_run_counts_even_if_only_its_last_outcome_is_kept(
    buffer: Confirmations, database: Database
) -> None:
    buffer.add(outcome(status=DISPATCHED), outcome(status=DISPATCHED), outcome(status=SUCCEEDED))
    buffer.flush()
    tally = database.tallies["mail"]
    assert (tally.retried, tally.succeeded, sum(tally.histogram)) == (2, 1, 3)


@pytest.mark.usefixtures("unhurried")
def test_a_full_buffer_is_flushed_without_waiting_for_the_tick(
    buffer: Confirmations, database: Database
) -> None:
    buffer.add(outcome(1))
    buffer.add(*map(outcome, range(2, flushing.FLUSH_SIZE)))
    assert database.written == []
    buffer.add(outcome(flushing.FLUSH_SIZE))
    wait_until(lambda: len(database.written) == flushing.FLUSH_SIZE, what="a flush by size")


def test_a_single_outcome_is_flushed_by_the_tick(buffer: Confirmations, database: Database) -> None:
    buffer.add(outcome())
    wait_until(lambda: database.written, what="a flush by tick")


@pytest.mark.usefixtures("unhurried")
def test_closing_flushes_and_ends_the_thread(buffer: Confirmations, database: Database) -> None:
    buffer.add(outcome())
    thread = buffer._thread
    buffer.close()
    assert database.statuses == {1: SUCCEEDED}
    assert thread is not None
    assert not thread.is_alive()


def test_a_closed_buffer_starts_anew(buffer: Confirmations, database: Database) -> None:
    buffer.add(outcome(1))
    buffer.close()
    buffer.add(outcome(2))
    wait_until(lambda: len(database.written) == 2, what="a flush after closing")


def test_closing_what_was_never_used_does_nothing(buffer: Confirmations, database: Database) -> None:
    buffer.close()
    assert database.writes == []


def test_while_the_database_is_away_everything_is_kept_and_written_later(
    buffer: Confirmations, database: Database
) -> None:
    database.away = True
    buffer.add(outcome(1), outcome(2, DISPATCHED))
    wait_until(lambda: database.refused, what="a flush in vain")
    buffer.add(outcome(2, FAILED), outcome(3))
    buffer.count_dispatched("default", {"mail": 3})
    refused = database.refused
    wait_until(lambda: database.refused > refused + 1, what="more flushes in vain")
    assert database.written == []
    database.away = False
    wait_until(lambda: len(database.statuses) == 3, what="the outcomes to be written")
    assert database.statuses == {1: SUCCEEDED, 2: FAILED, 3: SUCCEEDED}
    tally = database.tallies["mail"]
    assert (tally.dispatched, tally.succeeded, tally.retried, tally.failed) == (3, 2, 1, 1)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("written", [0, 1])
def test_an_interrupt_of_the_thread_that_flushes_loses_nothing(
    buffer: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    monkeypatch.setattr(flushing, "FLUSH_SIZE", 10)
    # Its own thread would flush what is back at once.
    monkeypatch.setattr(buffer, "_start", lambda: None)
    buffer.add(*map(outcome, range(30)))
    buffer.count("metered", "succeeded", 0.1)

    def be_interrupted(name: str, batch: Batch) -> tuple[Batch, set[int]]:
        if len(database.writes) == written:
            raise TimeLimitExceeded("now")
        return database.write(name, batch)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write", be_interrupted)
        with pytest.raises(TimeLimitExceeded):
            buffer.flush()
    buffer.add(outcome(30))
    assert buffer.flush()
    assert sorted(one.delivery_id for one in database.written) == list(range(31))
    assert {name: tally.succeeded for name, tally in database.tallies.items()} == {"mail": 31, "metered": 1}


def test_success_from_before_an_outage_settles_what_comes_in_during_it(
    buffer: Confirmations, database: Database
) -> None:
    database.away = True
    buffer.add(outcome(1, SUCCEEDED))
    wait_until(lambda: database.refused, what="a flush in vain")
    buffer.add(outcome(1, FAILED))
    database.away = False
    wait_until(lambda: database.written, what="the outcome to be written")
    assert [one.status for one in database.written] == [SUCCEEDED]


def test_closing_waits_for_a_database_that_comes_back(buffer: Confirmations, database: Database) -> None:
    database.away = True
    buffer.add(outcome())
    threading.Timer(0.1, setattr, (database, "away", False)).start()
    buffer.close(timeout_s=30)
    assert database.statuses == {1: SUCCEEDED}


def test_closing_gives_up_in_time_and_says_what_is_left(
    buffer: Confirmations, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.away = True
    buffer.add(outcome(1), outcome(2))
    thread = buffer._thread
    buffer.close(timeout_s=0.05)
    assert "2 outcomes are not confirmed yet" in caplog.text
    wait_until(lambda: thread and not thread.is_alive(), what="the thread to give up")
    database.away = False
    assert buffer.flush()
    assert set(database.statuses) == {1, 2}


def test_the_thread_goes_on_when_somebody_else_has_flushed(buffer: Confirmations) -> None:
    buffer.add(outcome(1))
    thread = buffer._thread
    assert thread is not None
    # For the tick, as there is something to do.
    wait_until(lambda: buffer._changed._waiters, what="the thread to wait")  # type: ignore[attr-defined]
    assert buffer.flush()
    thread.join(3 * flushing.FLUSH_INTERVAL_S)
    # What is added while it ends would have nobody to write it.
    assert thread.is_alive()


def test_closing_says_what_a_database_that_does_not_answer_has_in_hand(
    buffer: Confirmations,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def write_late(alias: str, batch: Batch) -> tuple[Batch, set[int]]:
        asked.set()
        answer.wait(30)
        return database.write(alias, batch)

    monkeypatch.setattr(writing, "write", write_late)
    buffer.add(outcome(1), outcome(2))
    assert asked.wait(30)
    buffer.close(timeout_s=0.05)
    answer.set()
    assert "2 outcomes are not confirmed yet" in caplog.text
    wait_until(lambda: set(database.statuses) == {1, 2}, what="the outcomes to be written after all")


@pytest.mark.usefixtures("unhurried")
def test_a_row_that_somebody_has_locked_is_tried_again(
    buffer: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = outcome(2)
    monkeypatch.setattr(writing, "write", lambda _alias, batch: (Batch({2: batch.outcomes[2]}), {1}))
    buffer.add(outcome(1), locked)
    assert not buffer.flush()
    monkeypatch.setattr(writing, "write", database.write)
    wait_until(buffer.flush, what="the locked row to be written")
    assert database.written == [locked]


@pytest.mark.usefixtures("unhurried")
def test_a_lane_waits_neither_for_the_tick_nor_for_long_when_its_row_was_locked(
    buffer: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = outcome(1, lane="a")
    locks = [True]

    def write(alias: str, batch: Batch) -> tuple[Batch, set[int]]:
        return (Batch.of([first]), set()) if locks and locks.pop() else database.write(alias, batch)

    monkeypatch.setattr(writing, "write", write)
    monkeypatch.setattr(writing, "release_lanes", lambda _alias, _lanes: set())
    # However long an outage lasts, this is no outage.
    monkeypatch.setattr(flushing, "RETRY_INTERVAL_S", 600.0)
    buffer.add(first)
    wait_until(lambda: database.written == [first], 20, "the lane to go on")


@pytest.mark.usefixtures("unhurried")
def test_an_outcome_that_the_database_refuses_does_not_keep_the_others(
    buffer: Confirmations, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    singly: list[int] = []

    def refuse(alias: str, batch: Batch) -> Batch:
        raise DataError("value out of range")

    def write_singly(alias: str, batch: Batch) -> tuple[Batch, set[int]]:
        singly.extend(batch.outcomes)
        return Batch(), set(batch.outcomes)

    monkeypatch.setattr(writing, "write", refuse)
    monkeypatch.setattr(writing, "write_singly", write_singly)
    buffer.add(outcome(1), outcome(2))
    assert buffer.flush()
    assert singly == [1, 2]


@pytest.mark.usefixtures("unhurried")
def test_beyond_its_bound_the_buffer_gives_up_the_oldest(
    buffer: Confirmations,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(buffering, "MAX_BUFFERED", 2)
    buffer.add(outcome(1), outcome(2), outcome(3))
    buffer.flush()
    assert set(database.statuses) == {2, 3}
    assert "the buffer of outcomes is full" in caplog.text


@pytest.mark.usefixtures("unhurried")
def test_a_database_that_nobody_configured_is_logged_and_harms_nobody(
    buffer: Confirmations, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    buffer.add(outcome(1, database="absent"), outcome(2))
    buffer.flush()
    assert set(database.statuses) == {2}
    assert "unknown database 'absent'" in caplog.text


@pytest.mark.usefixtures("unhurried")
def test_with_confirm_off_only_statistics_are_written(
    buffer: Confirmations, database: Database, settings: Any
) -> None:
    settings.OUTBOX = {"CONFIRM": False}
    buffer.add(outcome())
    buffer.flush()
    assert database.written == []
    assert database.tallies["mail"].succeeded == 1


@pytest.mark.usefixtures("unhurried")
def test_with_stats_off_only_outcomes_are_written(
    buffer: Confirmations, database: Database, settings: Any
) -> None:
    settings.OUTBOX = {"STATS": False}
    buffer.add(outcome())
    buffer.count_dispatched("default", {"mail": 1})
    buffer.flush()
    assert set(database.statuses) == {1}
    assert database.tallies == {}


@pytest.mark.usefixtures("unhurried")
def test_diverted_outcomes_go_to_the_caller(buffer: Confirmations, database: Database) -> None:
    with buffer.diverted() as outcomes:
        buffer.add(outcome(1))
    buffer.add(outcome(2))
    buffer.flush()
    assert [one.delivery_id for one in outcomes] == [1]
    assert set(database.statuses) == {2}


@pytest.mark.usefixtures("unhurried")
def test_a_forked_child_starts_empty_and_its_parent_keeps_what_it_has(
    buffer: Confirmations, database: Database
) -> None:
    buffer.add(outcome(1))
    reader, writer = os.pipe()
    child = fork()
    if not child:
        # The parent's thread does not exist here, so the child must start one of its own.
        started_without = buffer._thread is None
        buffer.add(outcome(2))
        buffer.close(timeout_s=10)
        report = f"{started_without} {sorted(database.statuses)}"
        os.write(writer, report.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() == "True [2]"
    os.close(reader)
    os.close(writer)
    buffer.flush()
    assert set(database.statuses) == {1}


def fork() -> int:
    """Fork; Python 3.12 and later warn of the threads that the child will not have."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
