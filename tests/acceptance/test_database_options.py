"""Options of a project's database that the relay must not depend on."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .folder import Folder
from .stage import relay, wait_for_states, waiting_in_broker, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.redis]

PROMPTLY_S = 5


def with_options(environment: dict[str, str], **options: object) -> dict[str, str]:
    """Return the environment of processes whose database has more options."""
    return environment | {"OUTBOX_TEST_DATABASE_OPTIONS": json.dumps(options)}


@pytest.mark.parametrize("size", [1, 2])
def test_relay_and_worker_need_no_more_than_one_connection_of_a_pool(
    redis_env: dict[str, str], redis_url: str, folder: Folder, size: int
) -> None:
    pytest.importorskip("psycopg_pool")
    environment = with_options(redis_env, pool={"min_size": 1, "max_size": size, "timeout": 60})
    # The events wait for no poll: the relay listens as well.
    with relay(environment, "--poll-interval", "300") as relaying:
        relaying.wait_for_line("relay started")
        for _ in range(3):
            publish("filed.mail")
        with worker(environment):
            wait_for_states(succeeded=3)
        assert "away" not in relaying.output
        relaying.terminate()
        assert relaying.wait(PROMPTLY_S) == 0


@pytest.mark.parametrize("level", [3, 4], ids=["repeatable read", "serializable"])
def test_relays_of_a_project_with_a_high_isolation_level_dispatch_each_event_once(
    redis_env: dict[str, str], redis_url: str, level: int
) -> None:
    environment = with_options(redis_env, isolation_level=level)
    for _ in range(200):
        publish("filed.mail")
    with ExitStack() as stack:
        relays = [stack.enter_context(relay(environment, "--batch-size", "7")) for _ in range(3)]
        wait_for_states(dispatched=200)
        wait_until(lambda: len(waiting_in_broker(redis_url)) == 200, what="the messages")
        for process in relays:
            process.terminate()
        assert [process.wait() for process in relays] == [0, 0, 0]
        assert not [process for process in relays if "away" in process.output]
    assert len(waiting_in_broker(redis_url)) == 200
