"""`run_relay --processes`: a supervisor and several relays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from django.db import transaction

import outbox
from outbox.models import ProcessHeartbeat
from tests.support.data_flow import publish, states_of
from tests.support.processes import Process, wait_until

from .activity import connections_of_relays
from .gate import NOTICE_DEATH, shut_gate
from .stage import attempts, relay, run, states, wait_for_states, waiting_in_broker

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

PROMPTLY_S = 2.5


def relays(env: dict[str, str], processes: int, *options: str) -> Process:
    """Prepare a supervisor of this many relays."""
    return relay(env, "--processes", str(processes), *options)


def pids() -> set[int]:
    """Return the process ids in heartbeats."""
    return set(ProcessHeartbeat.objects.relays().values_list("pid", flat=True))


def wait_for_relays(count: int) -> set[int]:
    """Wait until this many processes have a heartbeat; return their ids."""
    wait_until(lambda: len(pids()) == count, what=f"{count} relays to report")
    return pids()


def publish_some(count: int) -> list[int]:
    """Publish events with one delivery each in one transaction; return the delivery ids."""
    with transaction.atomic():
        return sorted(outbox.publish("filed.mail").deliveries.get().pk for _ in range(count))


# ---------------------------------------------------------------- dispatch


def test_only_the_relay_processes_are_connected_and_all_dispatch(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 3, "--batch-size", "4", "--no-listen") as process:
        assert process.pid not in wait_for_relays(3)
        # One dispatches, and one is of the maintenance thread.
        wait_until(lambda: connections_of_relays() == 3 * 2, what="each relay to have two connections")
        with shut_gate() as gate:
            deliveries = publish_some(12)
            gate.wait_for(3)
            gate.open()
            wait_for_states(dispatched=12)
        process.terminate()
        assert process.wait() == 0
    assert waiting_in_broker(redis_env["OUTBOX_TEST_BROKER_URL"]) == deliveries
    assert not ProcessHeartbeat.objects.relays().exists()


def test_a_drain_ends_when_every_process_has_ended(redis_env: dict[str, str]) -> None:
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    run(redis_env, "--drain", "--processes", "2", "--queues", queue)
    assert states_of(event) == {"record": "pending", "record_all": "dispatched"}


def test_each_process_dispatches_one_batch_with_once(redis_env: dict[str, str]) -> None:
    publish_some(10)
    run(redis_env, "--once", "--processes", "2", "--batch-size", "3")
    assert states() == {"dispatched": 6, "pending": 4}


# ---------------------------------------------------------------- killed processes


def test_a_killed_process_is_replaced_and_loses_no_delivery(redis_env: dict[str, str]) -> None:
    with relays(redis_env | NOTICE_DEATH, 2, "--batch-size", "5") as process:
        before = wait_for_relays(2)
        with shut_gate() as gate:
            deliveries = publish_some(20)
            gate.wait_for(2)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            process.wait_for_line(rf"relay process \d \(pid {victim}\) was ended by SIGKILL")
            # The rows of its batch are unlocked, and the new process claims them.
            gate.wait_for(1)
            gate.wait_for(2)
            gate.open()
            wait_for_states(dispatched=20)
        wait_until(lambda: len(pids() - before) == 1, what="the new relay to report")
        process.terminate()
        assert process.wait() == 0
    assert set(waiting_in_broker(redis_env["OUTBOX_TEST_BROKER_URL"])) == set(deliveries)


def test_the_processes_of_a_killed_supervisor_finish_their_batches(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 2, "--poll-interval", "300", "--batch-size", "5") as process:
        wait_for_relays(2)
        with shut_gate() as gate:
            publish_some(20)
            gate.wait_for(2)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            gate.open()
            wait_until(lambda: process.output.count("relay stopped") == 2, what="both relays to stop")
    assert not ProcessHeartbeat.objects.relays().exists()
    assert states() == {"dispatched": 10, "pending": 10}


# ---------------------------------------------------------------- signals


# Ctrl-C, and process managers by default, send the signal to every process of the group.
@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.kill, signal.SIGTERM, id="supervisor-SIGTERM"),
        pytest.param(os.killpg, signal.SIGTERM, id="group-SIGTERM"),
        pytest.param(os.killpg, signal.SIGINT, id="group-SIGINT"),
    ],
)
def test_the_first_signal_lets_all_processes_finish_their_batches(
    redis_env: dict[str, str], send: Callable[[int, int], None], number: signal.Signals
) -> None:
    publish_some(12)
    with shut_gate() as gate, relays(redis_env, 2, "--batch-size", "5") as process:
        gate.wait_for(2)
        send(process.pid, number)
        process.wait_for_line("finish their current batches")
        gate.open()
        assert process.wait() == 0
    assert states() == {"dispatched": 10, "pending": 2}
    assert not ProcessHeartbeat.objects.relays().exists()


def test_the_second_signal_kills_all_processes_and_leaves_their_batches_pending(
    redis_env: dict[str, str],
) -> None:
    publish_some(12)
    with shut_gate() as gate, relays(redis_env | NOTICE_DEATH, 2, "--batch-size", "5") as process:
        gate.wait_for(2)
        os.killpg(process.pid, signal.SIGINT)
        process.wait_for_line("finish their current batches")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PROMPTLY_S) == 128 + signal.SIGINT
        gate.wait_for(0)
    assert states() == {"pending": 12}
    assert attempts() == {0}


def test_a_supervisor_can_be_stopped_while_its_processes_start(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 2) as process:
        process.wait_for_line("supervising 2 relay processes")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.output
