"""Relay and worker recover after a restart of the database, and no outcome is lost."""

from __future__ import annotations

from collections import Counter

import pytest
from django.db import connection

from example.services import EmbeddedPostgres
from outbox.models import ProcessHeartbeat
from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .folder import Folder
from .stage import attempts, counted, ids, relay, wait_for_states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

# A worker tries to confirm about five times a second.
SEVERAL_SECONDS = 15


@pytest.mark.redis
def test_outcomes_wait_in_the_worker_until_the_database_is_back(
    own_postgres: EmbeddedPostgres, redis_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    with relay(redis_env) as relaying, worker(redis_env) as working:
        events = [publish("filed.mail") for _ in range(100)]
        wait_for_states(dispatched=100)
        wait_until(lambda: folder.begun, what="a handler to begin")
        own_postgres.kill()
        folder.resume()
        wait_until(lambda: len(folder.done) == 100, what="all handlers to end")
        wait_until(
            lambda: working.output.count("is away;") >= SEVERAL_SECONDS, what="the worker to retry its flush"
        )
        relaying.wait_for_line("database away")
        own_postgres.start()
        connection.close()
        wait_for_states(succeeded=100)
        wait_until(lambda: counted("succeeded") == counted("dispatched") == 100, what="the statistics")
        events.append(publish("filed.mail"))
        wait_for_states(succeeded=101)
    assert Counter(folder.done) == Counter(ids(events))
    assert attempts() == {1}


@pytest.mark.redis
def test_relay_and_worker_continue_after_a_restart_of_the_database(
    own_postgres: EmbeddedPostgres, redis_env: dict[str, str], folder: Folder
) -> None:
    # Without LISTEN the end of a connection does not wake the relay.
    with relay(redis_env, "--no-listen"), worker(redis_env):
        events = [publish("filed.mail")]
        wait_for_states(succeeded=1)
        wait_until(ProcessHeartbeat.objects.relays().exists, what="the relay to wait")
        own_postgres.restart("immediate")
        connection.close()
        events.append(publish("filed.mail"))
        wait_for_states(succeeded=2)
    assert Counter(folder.done) == Counter(ids(events))
