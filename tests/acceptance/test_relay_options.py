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
from outbox.models import Delivery, Event, RelayHeartbeat
from tests.acceptance.activity import APPLICATION, ask, listening, quiet_s
from tests.acceptance.stage import attempts, relay, run, states, wait_for_states, with_options
from tests.conftest import clear_redis
from tests.helpers import publish, statuses
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

OBSERVED_S = 3.0


def wait_until_idle(process: Process) -> None:
    """Wait until a relay has looked for work and found none."""
    wait_until(RelayHeartbeat.objects.filter(pid=process.pid).exists, what=f"{process} to report")


def latency_s(event: Event) -> float:
    """Return how long an event waited for its dispatch, by the clock of the database."""
    delivery = event.deliveries.get()
    return (delivery.dispatched_at - event.created_at).total_seconds()


# ---------------------------------------------------------------- how much, and of what


def test_once_dispatches_one_batch(redis_env: dict[str, str]) -> None:
    for _ in range(10):
        publish("filed.mail")
    run(redis_env, "--once", "--batch-size", "3")
    assert states() == {"dispatched": 3, "pending": 7}


def test_drain_ends_when_nothing_is_due(redis_env: dict[str, str]) -> None:
    for _ in range(10):
        publish("filed.mail")
    later = publish("filed.mail", delay=timedelta(hours=1))
    run(redis_env, "--drain", "--batch-size", "3")
    assert states() == {"dispatched": 10, "pending": 1}
    assert statuses(later) == {"filed": "pending"}
    run(redis_env, "--drain")
    assert states() == {"dispatched": 10, "pending": 1}


def test_drain_sends_again_what_nobody_confirmed(redis_env: dict[str, str]) -> None:
    env = with_options(redis_env, CONFIRM_TIMEOUT=0.5)
    publish("filed.mail")
    run(env, "--drain")
    wait_until(Delivery.objects.overdue().exists, what="the confirmation to be overdue")
    # The broker lost it; a message that it still has is not sent again.
    clear_redis(env["OUTBOX_TEST_BROKER_URL"])
    run(env, "--drain")
    assert attempts() == {2}


def test_a_relay_of_one_queue_leaves_the_others_alone(redis_env: dict[str, str]) -> None:
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    run(redis_env, "--drain", "--queues", queue)
    assert statuses(event) == {"record": "pending", "record_all": "dispatched"}


# ---------------------------------------------------------------- waiting


def test_a_notification_wakes_a_relay_that_would_not_look_yet(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "30"):
        wait_until(listening, what="the relay to listen")
        # Waits double: one that has lasted this long goes on for nearly as long again.
        wait_until(lambda: quiet_s() > 2, what="the relay to wait long")
        event = publish("filed.mail")
        wait_for_states(dispatched=1)
    assert latency_s(event) < 1


def test_without_listening_a_relay_finds_work_by_polling(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "0.3", "--no-listen") as process:
        wait_until_idle(process)
        event = publish("filed.mail")
        wait_for_states(dispatched=1)
        assert not listening()
    assert latency_s(event) < 2


def test_a_delivery_is_dispatched_when_it_falls_due(redis_env: dict[str, str]) -> None:
    with relay(redis_env, "--poll-interval", "30") as process:
        wait_until_idle(process)
        publish("filed.mail", delay=timedelta(seconds=2))
        wait_for_states(dispatched=1)
    delivery = Delivery.objects.get()
    assert 0 <= (delivery.dispatched_at - delivery.available_at).total_seconds() < 1


@contextmanager
def statement_log(server: EmbeddedPostgres) -> Iterator[None]:
    """Let a server log every statement, with the time and the client."""
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
    """Return the lines of a server's log about statements of relays."""
    log = (server.directory / "server.log").read_text()
    found = re.finditer(rf"^(\d+\.\d+) {APPLICATION} LOG:  (?:statement|execute).*", log, re.MULTILINE)
    return [match[0] for match in found if began <= float(match[1]) < began + OBSERVED_S]


def test_an_idle_relay_executes_at_most_two_statements_a_second(
    own_postgres: EmbeddedPostgres, redis_env: dict[str, str]
) -> None:
    with statement_log(own_postgres), relay(redis_env):
        wait_until(lambda: quiet_s() > 0.9, what="the relay to come to rest")
        began = ask("SELECT extract(epoch FROM clock_timestamp())")
        ended = time.monotonic() + OBSERVED_S
        wait_until(lambda: time.monotonic() > ended, what="the end of the observation")
        found = statements_since(began, own_postgres)
    assert 1 <= len(found) <= 2 * OBSERVED_S, "\n".join(found)
