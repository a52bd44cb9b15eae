"""How a relay ends: the batch in hand is finished, and no wait is too deep to hear the signal."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from example.services import EmbeddedPostgres
from outbox.models import RelayHeartbeat
from tests.acceptance.activity import quiet_s
from tests.acceptance.gate import NOTICE_DEATH, shut_gate
from tests.acceptance.stage import attempts, relay, states, waiting_in_broker
from tests.acceptance.switch import Switch
from tests.helpers import publish
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

STOPS = [signal.SIGTERM, signal.SIGINT]

# Far below any poll interval, backoff or timeout that a relay might be sitting in.
PROMPTLY_S = 2.5


def wait_for_heartbeat(process: Process, state: str) -> None:
    """Wait until a relay says that it is in a state, as it does just before it waits."""
    found = RelayHeartbeat.objects.filter(pid=process.pid, state=state)
    wait_until(found.exists, what=f"{process} to be {state}")


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_lets_the_batch_in_hand_finish(
    broker_env: dict[str, str], broker_url: str, number: signal.Signals
) -> None:
    for _ in range(12):
        publish("filed.mail")
    with shut_gate() as gate, relay(broker_env, "--batch-size", "5") as process:
        gate.wait_for(1)
        process.send_signal(number)
        gate.open()
        assert process.wait() == 0
    assert states() == {"dispatched": 5, "pending": 7}
    assert len(waiting_in_broker(broker_url)) == 5
    assert not RelayHeartbeat.objects.exists()


@pytest.mark.redis
def test_the_second_signal_ends_at_once_and_leaves_the_batch_pending(redis_env: dict[str, str]) -> None:
    for _ in range(12):
        publish("filed.mail")
    with shut_gate() as gate, relay(redis_env | NOTICE_DEATH, "--batch-size", "5") as process:
        gate.wait_for(1)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(PROMPTLY_S) in {128 + number for number in STOPS}
        gate.wait_for(0)
    assert states() == {"pending": 12}
    assert attempts() == {0}


@pytest.mark.redis
def test_an_idle_relay_ends_promptly(redis_env: dict[str, str]) -> None:
    ways = [(number, option) for number in STOPS for option in ([], ["--no-listen"])]
    with ExitStack() as stack:
        idle = [
            stack.enter_context(relay(redis_env, "--poll-interval", "300", *option)) for _, option in ways
        ]
        # Waits double: those that have lasted this long go on for nearly as long again.
        wait_until(lambda: quiet_s() > 4, 60, "the relays to wait long")
        for process, (number, _) in zip(idle, ways, strict=True):
            process.send_signal(number)
        assert [process.wait(PROMPTLY_S) for process in idle] == [0] * len(ways)


def test_a_relay_whose_broker_is_away_ends_promptly(broker_env: dict[str, str], broker_url: str) -> None:
    publish("filed.mail")
    with Switch(broker_url) as way:
        way.off()
        with relay(broker_env | {"OUTBOX_TEST_BROKER_URL": way.url}) as process:
            wait_for_heartbeat(process, "broker away")
            process.terminate()
            assert process.wait(PROMPTLY_S) == 0
    assert states() == {"pending": 1}


@pytest.mark.redis
def test_a_relay_whose_database_is_away_ends_promptly(
    own_postgres: EmbeddedPostgres, redis_env: dict[str, str]
) -> None:
    with relay(redis_env) as process:
        wait_for_heartbeat(process, "running")
        own_postgres.kill()
        process.wait_for_line("database away")
        process.terminate()
        assert process.wait(PROMPTLY_S) == 0
