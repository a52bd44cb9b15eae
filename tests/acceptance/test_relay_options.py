"""The options of `run_relay`, and how a relay waits for work."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection

from example.services import EmbeddedPostgres
from outbox.models import Delivery, Event, ProcessHeartbeat
from tests.conftest import clear_redis
from tests.support.data_flow import publish, states_of
from tests.support.processes import Process, wait_until

from .activity import APPLICATION, idle_s, listening, number
from .stage import attempts, make_overdue, relay, run, states, wait_for_states

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

OBSERVED_S = 3.0
# The windows of observation, of which the quietest counts.
WINDOWS = 3


def wait_until_idle(process: Process) -> None:
    """Wait until a relay has checked for work and found none."""
    wait_until(ProcessHeartbeat.objects.filter(pid=process.pid).exists, what=f"{process} to report")


def latency_s(event: Event) -> float:
    """Return how long an event waited for its dispatch, by the clock of the database."""
    delivery = event.deliveries.get()
    return (delivery.dispatched_at - event.created_at).total_seconds()


# ---------------------------------------------------------------- the amount of work


def test_once_dispatches_one_batch(redis_env: dict[str, str]) -> None:
    for _ in range(10):
        publish("filed.mail")
    run(redis_env, "--once", "--batch-size", "3")
    assert states() == {"dispatched": 3, "pending": 7}


def test_drain_ends_when_no_delivery_is_due(redis_env: dict[str, str]) -> None:
    for _ in range(10):
        publish("filed.mail")
    later = publish("filed.mail", delay=timedelta(hours=1))
    run(redis_env, "--drain", "--batch-size", "3")
    assert states() == {"dispatched": 10, "pending": 1}
    assert states_of(later) == {"filed": "pending"}
    run(redis_env, "--drain")
    assert states() == {"dispatched": 10, "pending": 1}


def test_drain_redelivers_unconfirmed_deliveries(redis_env: dict[str, str]) -> None:
    publish("filed.mail")
    run(redis_env, "--drain")
    make_overdue()
    # The broker loses the message; a message that the broker still has is not redelivered.
    clear_redis(redis_env["OUTBOX_TEST_BROKER_URL"])
    run(redis_env, "--drain")
    assert attempts() == {2}


def test_a_relay_of_one_queue_dispatches_only_its_deliveries(redis_env: dict[str, str]) -> None:
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    run(redis_env, "--drain", "--queues", queue)
    assert states_of(event) == {"record": "pending", "record_all": "dispatched"}


# ---------------------------------------------------------------- waiting


def test_a_notification_wakes_a_waiting_relay(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "30"):
        wait_until(listening, what="the relay to listen")
        # Each wait is twice as long as the one before, until the heartbeat after 5 s.
        wait_until(lambda: idle_s() > 3, what="the relay to wait long")
        event = publish("filed.mail")
        wait_for_states(dispatched=1)
    assert latency_s(event) < 1


def test_a_relay_without_listen_finds_work_by_polling(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "0.3", "--no-listen") as process:
        wait_until_idle(process)
        event = publish("filed.mail")
        wait_for_states(dispatched=1)
        assert not listening()
    assert latency_s(event) < 2


def test_a_delivery_is_dispatched_when_it_is_due(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "30") as process:
        wait_until_idle(process)
        publish("filed.mail", delay=timedelta(seconds=2))
        wait_for_states(dispatched=1)
    delivery = Delivery.objects.get()
    assert 0 <= (delivery.dispatched_at - delivery.available_at).total_seconds() < 1


@contextmanager
def statement_log(server: EmbeddedPostgres) -> Iterator[None]:
    """Make a server log every statement, with the time and the client."""
    with connection.cursor() as cursor:
        try:
            cursor.execute("ALTER SYSTEM SET log_line_prefix = '%n %a '")
            cursor.execute("ALTER SYSTEM SET log_statement = 'all'")
            cursor.execute("SELECT pg_reload_conf()")
            yield
        finally:
            cursor.execute("ALTER SYSTEM RESET ALL")
            cursor.execute("SELECT pg_reload_conf()")


def statements_since(began: float, server: EmbeddedPostgres) -> list[str]:
    """Return the lines of a server's log with statements of relays."""
    log = (server.directory / "server.log").read_text()
    found = re.finditer(rf"^(\d+\.\d+) {APPLICATION} LOG:  (?:statement|execute).*", log, re.MULTILINE)
    return [match[0] for match in found if began <= float(match[1]) < began + OBSERVED_S]


def test_an_idle_relay_executes_at_most_two_statements_a_second(
    own_postgres: EmbeddedPostgres, redis_env: dict[str, str]
) -> None:
    with statement_log(own_postgres), relay(redis_env):
        wait_until(lambda: idle_s() > 0.9, what="the relay to be idle")
        # The first tasks of maintenance, and the sample of each minute, may fall into one window.
        windows = [observe(own_postgres) for _ in range(WINDOWS)]
    found = min(windows, key=len)
    assert 1 <= len(found) <= 2 * OBSERVED_S, "\n".join(found)


def observe(server: EmbeddedPostgres) -> list[str]:
    """Return the statements that relays execute from now on, for some seconds."""
    began = number("SELECT extract(epoch FROM clock_timestamp())")
    ended = time.monotonic() + OBSERVED_S
    wait_until(lambda: time.monotonic() > ended, what="the end of the observation")
    return statements_since(began, server)
