"""A Redis server that has little memory left: the relay waits, says so once, and continues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from example.services import EmbeddedRedis, redis_executable
from outbox.models import ProcessHeartbeat
from tests.conftest import require
from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .stage import attempts, relay, states, wait_for_states

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

COUNT = 10


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    require(redis_executable(), "no redis-server of its own that a test can fill")
    with EmbeddedRedis() as one:
        yield one


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as one:
        yield one


def test_a_relay_waits_while_redis_has_little_memory_left(
    process_env: dict[str, str], server: EmbeddedRedis, client: Any
) -> None:
    # More than 80 % of the limit, and less than 100 %.
    client.config_set("maxmemory", client.info("memory")["used_memory"] * 10 // 9)
    for _ in range(COUNT):
        publish("filed.mail")
    with relay(process_env | {"OUTBOX_TEST_BROKER_URL": server.url}) as process:
        wait_until(ProcessHeartbeat.objects.filter(state="broker full").exists, what="the relay to report it")
        assert "maxmemory" in ProcessHeartbeat.objects.get(state="broker full").detail
        assert (states(), attempts()) == ({"pending": COUNT}, {0})
        client.config_set("maxmemory", 0)
        wait_for_states(dispatched=COUNT)
        wait_until(ProcessHeartbeat.objects.filter(state="running").exists, what="the relay to run")
        assert process.output.count("broker full") == 1
    assert attempts() == {1}
