"""A relay that gets a signal finishes its batch, and every wait ends promptly."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from example.services import EmbeddedPostgres
from outbox.models import ProcessHeartbeat
from tests.support.data_flow import publish
from tests.support.processes import Process, wait_until

from .activity import idle_s
from .gate import NOTICE_DEATH, shut_gate
from .stage import attempts, relay, states, waiting_in_broker
from .switch import Switch

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

STOPS = [signal.SIGTERM, signal.SIGINT]

# Far below the poll intervals, backoffs and timeouts of these tests.
PROMPTLY_S = 2.5


def wait_for_heartbeat(process: Process, state: str) -> None:
    """Wait until a relay reports a state, which it does just before it waits."""
    found = ProcessHeartbeat.objects.filter(pid=process.pid, state=state)
    wait_until(found.exists, what=f"{process} to be {state}")


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_lets_the_relay_finish_its_batch(
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
    assert not ProcessHeartbeat.objects.relays().exists()


@pytest.mark.redis
def test_the_second_signal_ends_the_relay_and_leaves_its_batch_pending(redis_env: dict[str, str]) -> None:
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


def wait_for_a_long_wait(name: str) -> None:
    """Wait until a relay has just begun a wait that only the heartbeat ends, after 5 s."""
    wait_until(lambda: idle_s(name) > 3, 60, f"{name} to wait long")
    wait_until(lambda: 0 < idle_s(name) < 1, what=f"{name} to wait again")


@pytest.mark.redis
def test_an_idle_relay_ends_promptly(redis_env: dict[str, str]) -> None:
    cases = {f"relay-{number.name}{option}": number for number in STOPS for option in ("", "--no-listen")}
    with ExitStack() as stack:
        idle: dict[str, Process] = {}
        for name in cases:
            options = ["--no-listen"] if name.endswith("--no-listen") else []
            command = Process.manage(
                "run_relay", "--poll-interval", "300", *options, env=redis_env | {"PGAPPNAME": name}
            )
            idle[name] = stack.enter_context(command)
        for name, process in idle.items():
            wait_for_a_long_wait(name)
            process.send_signal(cases[name])
            assert process.wait(PROMPTLY_S) == 0


def test_a_relay_whose_broker_is_away_ends_promptly(broker_env: dict[str, str], broker_url: str) -> None:
    publish("filed.mail")
    with Switch(broker_url) as switch:
        switch.off()
        with relay(broker_env | {"OUTBOX_TEST_BROKER_URL": switch.url}) as process:
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
