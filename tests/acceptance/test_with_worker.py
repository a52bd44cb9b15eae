"""`run_relay --with-worker`: one process relays and runs the handlers, without a server for messages."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from django.db import connection, transaction

import outbox
from example.services import EmbeddedPostgres
from outbox.models import Delivery, Event, ProcessHeartbeat
from tests.support.data_flow import publish
from tests.support.processes import Process, wait_until
from tests.testapp.jobs import add_in_order
from tests.testapp.models import Effect

from .folder import Folder
from .stage import attempts, ids, relay, states, wait_for_states

pytestmark = pytest.mark.slow

THREADS = 2
# Dramatiq's prefetch: a thread has its next message at hand.
ROOM = 2 * THREADS


@pytest.fixture
def embedded_env(process_env: dict[str, str]) -> dict[str, str]:
    """Return the environment of processes that run their handlers themselves."""
    return process_env | {"OUTBOX_TEST_BROKER_URL": "embedded:"}


def one_process(env: dict[str, str], *options: str) -> Process:
    """Prepare a relay with a worker."""
    return relay(env, "--with-worker", str(THREADS), *options)


def publish_filed(count: int) -> list[Event]:
    """Publish events with one delivery each, in one transaction."""
    with transaction.atomic():
        return [outbox.publish("filed.mail") for _ in range(count)]


def assert_ran_once(folder: Folder, events: Sequence[Event]) -> None:
    assert Counter(folder.done) == Counter(ids([*events]))


# ---------------------------------------------------------------- one process


def test_one_process_runs_all_kinds_of_handlers(embedded_env: dict[str, str]) -> None:
    event = publish("test.recorded", {"number": 1})
    retried = publish("flaky.once")
    with one_process(embedded_env) as process:
        process.wait_for_line("with 2 worker threads")
        wait_for_states(succeeded=3)
        publish("test.recorded", {"number": 2})
        wait_for_states(succeeded=5)
        process.terminate()
        assert process.wait() == 0
    assert Effect.objects.filter(handler="record", event_id=event.pk).count() == 1
    assert attempts(event=retried) == {2}
    assert not ProcessHeartbeat.objects.exists()


def test_it_claims_only_as_many_deliveries_as_its_threads_can_take(
    embedded_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = publish_filed(20)
    with one_process(embedded_env) as process:
        wait_for_states(dispatched=ROOM, pending=20 - ROOM)
        wait_until(lambda: len(folder.begun) == THREADS, what="both threads to run a handler")
        assert states() == {"dispatched": ROOM, "pending": 20 - ROOM}
        folder.resume()
        wait_for_states(succeeded=20)
        process.terminate()
        assert process.wait() == 0
    assert_ran_once(folder, events)


def test_a_stop_ends_running_handlers_and_returns_the_others(
    embedded_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = publish_filed(10)
    with one_process(embedded_env) as process:
        wait_until(lambda: len(folder.begun) == THREADS, what="both threads to run a handler")
        process.terminate()
        process.wait_for_line("relay stopped")
        folder.resume()
        assert process.wait() == 0
    assert states() == {"succeeded": THREADS, "pending": 10 - THREADS}
    # The deliveries that no thread has begun are due at once, without an attempt.
    assert attempts(state="pending") == {0}
    with one_process(embedded_env, "--drain") as process:
        assert process.wait() == 0
    assert_ran_once(folder, events)


def test_a_drain_waits_for_handlers_and_for_the_next_deliveries_of_their_keys(
    embedded_env: dict[str, str], folder: Folder
) -> None:
    events = publish_filed(50)
    for number in range(6):
        add_in_order.enqueue("key", number)
    with one_process(embedded_env, "--drain") as process:
        assert process.wait(60) == 0
    assert states() == {"succeeded": 56}
    assert_ran_once(folder, events)
    in_order = Effect.objects.filter(handler="add_in_order").order_by("pk")
    assert [effect.detail["number"] for effect in in_order] == [*range(6)]


def test_a_time_limit_interrupts_a_handler(embedded_env: dict[str, str]) -> None:
    publish("limited.forever")
    with one_process(embedded_env):
        wait_for_states(failed=1)
    assert "TimeLimitExceeded" in Delivery.objects.get().error


# ---------------------------------------------------------------- killed processes


def test_deliveries_of_a_killed_process_run_in_the_next_one(
    embedded_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = publish_filed(10)
    with one_process(embedded_env) as process:
        wait_for_states(dispatched=ROOM, pending=10 - ROOM)
        wait_until(lambda: len(folder.begun) == THREADS, what="both threads to run a handler")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    folder.resume()
    # Long before CONFIRM_TIMEOUT.
    with one_process(embedded_env) as process:
        process.wait_for_line(f"redelivering {ROOM} deliveries whose message died")
        wait_for_states(succeeded=10)
    assert_ran_once(folder, events)


@pytest.mark.postgres
def test_a_second_process_never_takes_the_running_deliveries_of_a_living_one(
    embedded_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = publish_filed(ROOM)
    with one_process(embedded_env) as first:
        wait_for_states(dispatched=ROOM)
        with one_process(embedded_env) as second:
            events += publish_filed(ROOM)
            wait_for_states(dispatched=2 * ROOM)
            # Overdue too: each relay asks only its own memory.
            Delivery.objects.update(confirm_by=Delivery.objects.earliest("dispatched_at").dispatched_at)
            wait_until(lambda: len(folder.begun) == 2 * THREADS, what="all threads to run a handler")
            first.send_signal(signal.SIGKILL)
            second.wait_for_line(f"redelivering {ROOM} deliveries whose message died")
            folder.resume()
            wait_for_states(succeeded=2 * ROOM)
    assert_ran_once(folder, events)
    assert attempts(resends=0) == {1}
    assert Delivery.objects.filter(resends=1).count() == ROOM


@pytest.mark.postgres
def test_a_restart_of_the_database_makes_no_process_look_dead(
    own_postgres: EmbeddedPostgres, embedded_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = publish_filed(ROOM)
    with one_process(embedded_env) as first:
        wait_for_states(dispatched=ROOM)
        with one_process(embedded_env) as second:
            wait_until(lambda: ProcessHeartbeat.objects.relays().count() == 2, what="both relays")
            own_postgres.restart("immediate")
            connection.close()
            for process in (first, second):
                process.wait_for_line("relay of database .* again after")
            events += publish_filed(ROOM)
            wait_for_states(dispatched=2 * ROOM)
            folder.resume()
            wait_for_states(succeeded=2 * ROOM)
            assert "whose message died" not in first.output + second.output
    assert_ran_once(folder, events)


# ---------------------------------------------------------------- the command line


def test_a_worker_of_dramatiq_is_told_that_it_gets_no_message(embedded_env: dict[str, str]) -> None:
    with Process.manage("rundramatiq", "--processes", "1", "--threads", "1", env=embedded_env) as process:
        process.wait_for_line("EmbeddedBroker has no messages for a worker of its own process")


# ---------------------------------------------------------------- SQLite


@pytest.fixture
def sqlite_env(embedded_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes with a SQLite database of their own, with the tables."""
    env = embedded_env | {"DATABASE_URL": f"sqlite:///{tmp_path / 'site.sqlite3'}"}
    manage(env, "migrate", "--verbosity", "0")
    return env


def manage(env: dict[str, str], *arguments: str) -> str:
    """Run a command of the test project to its end, and return its output."""
    with Process.manage(*arguments, env=env) as process:
        assert process.wait() == 0, process.output
        return process.output


def publish_in(env: dict[str, str], count: int) -> None:
    """Publish events in the database of an environment."""
    code = f"""
from django.db import transaction
from outbox import publish
with transaction.atomic():
    for _ in range({count}):
        publish("filed.mail")
"""
    manage(env, "shell", "-c", code)


def test_on_sqlite_a_relay_for_a_broker_redelivers_what_the_process_left_behind(
    sqlite_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    publish_in(sqlite_env, ROOM)
    with one_process(sqlite_env) as process:
        wait_until(lambda: len(folder.begun) == THREADS, what="both threads to run a handler")
        # Its broker is in the memory of the relay, so nothing runs; the site has moved to a broker.
        with relay(sqlite_env | {"OUTBOX_TEST_BROKER_URL": ""}) as other:
            other.wait_for_line("relay started")
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    with relay(sqlite_env | {"OUTBOX_TEST_BROKER_URL": ""}) as other:
        # At least the two that ran; the others may not have been claimed yet.
        other.wait_for_line(r"redelivering [2-4] deliveries whose message died")


def test_on_sqlite_deliveries_of_a_killed_process_run_in_the_next_one(
    sqlite_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    publish_in(sqlite_env, 6)
    with one_process(sqlite_env) as process:
        wait_until(lambda: len(folder.begun) == THREADS, what="both threads to run a handler")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    folder.resume()
    with one_process(sqlite_env) as process:
        wait_until(lambda: len(folder.done) == 6, what="all handlers to end")
        with one_process(sqlite_env) as second:
            second.wait_for_line("another process runs the handlers of database 'default'")
            assert second.wait() == 1
        process.terminate()
        assert process.wait() == 0
    assert set(Counter(folder.done).values()) == {1}
