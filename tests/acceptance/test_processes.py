"""`run_relay --processes`: several relays, supervised."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from django.db import transaction

import outbox
from outbox.models import RelayHeartbeat
from tests.acceptance.activity import connections_of_relays
from tests.acceptance.gate import NOTICE_DEATH, shut_gate
from tests.acceptance.stage import attempts, relay, run, states, wait_for_states, waiting_in_broker
from tests.helpers import publish, statuses
from tests.processes import Process, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.slow]

PROMPTLY_S = 2.5


def relays(env: dict[str, str], processes: int, *options: str) -> Process:
    """Prepare a supervisor of so many relays."""
    return relay(env, "--processes", str(processes), *options)


def pids() -> set[int]:
    """Return the processes whose relays have said that they live."""
    return set(RelayHeartbeat.objects.values_list("pid", flat=True))


def wait_for_relays(count: int) -> set[int]:
    """Wait until so many processes relay, and return them."""
    wait_until(lambda: len(pids()) == count, what=f"{count} relays to report")
    return pids()


def publish_some(count: int) -> list[int]:
    """Publish events with one delivery each, all at once; return the deliveries."""
    with transaction.atomic():
        return sorted(outbox.publish("filed.mail").deliveries.get().pk for _ in range(count))


# ---------------------------------------------------------------- work


def test_all_processes_dispatch_and_only_they_are_connected(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 3, "--batch-size", "4", "--no-listen") as process:
        assert process.pid not in wait_for_relays(3)
        assert connections_of_relays() == 3
        with shut_gate() as gate:
            deliveries = publish_some(12)
            gate.wait_for(3)
            gate.open()
            wait_for_states(dispatched=12)
        process.terminate()
        assert process.wait() == 0
    assert waiting_in_broker(redis_env["OUTBOX_TEST_BROKER_URL"]) == deliveries
    assert not RelayHeartbeat.objects.exists()


def test_a_drain_ends_when_every_process_has_ended(redis_env: dict[str, str]) -> None:
    event = publish("test.recorded")
    queue = event.deliveries.get(handler="record_all").queue
    run(redis_env, "--drain", "--processes", "2", "--queues", queue)
    assert statuses(event) == {"record": "pending", "record_all": "dispatched"}


def test_with_once_each_process_dispatches_one_batch(redis_env: dict[str, str]) -> None:
    publish_some(10)
    run(redis_env, "--once", "--processes", "2", "--batch-size", "3")
    assert states() == {"dispatched": 6, "pending": 4}


# ---------------------------------------------------------------- deaths


def test_a_process_that_is_killed_loses_nothing_and_is_replaced(redis_env: dict[str, str]) -> None:
    with relays(redis_env | NOTICE_DEATH, 2, "--batch-size", "5") as process:
        before = wait_for_relays(2)
        with shut_gate() as gate:
            deliveries = publish_some(20)
            gate.wait_for(2)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            process.wait_for_line(rf"relay process \d \(pid {victim}\) was ended by SIGKILL")
            # Its batch is free again, and the one that takes its place comes with it.
            gate.wait_for(1)
            gate.wait_for(2)
            gate.open()
            wait_for_states(dispatched=20)
        wait_until(lambda: len(pids() - before) == 1, what="the new relay to report")
        process.terminate()
        assert process.wait() == 0
    assert set(waiting_in_broker(redis_env["OUTBOX_TEST_BROKER_URL"])) == set(deliveries)


def test_the_processes_of_a_killed_supervisor_stop_in_order(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 2, "--poll-interval", "300", "--batch-size", "5") as process:
        wait_for_relays(2)
        with shut_gate() as gate:
            publish_some(20)
            gate.wait_for(2)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            gate.open()
            wait_until(lambda: process.output.count("relay stopped") == 2, what="both relays to stop")
    assert not RelayHeartbeat.objects.exists()
    assert states() == {"dispatched": 10, "pending": 10}


# ---------------------------------------------------------------- signals


# Ctrl-C, and process managers by default, reach every process by itself.
@pytest.mark.parametrize(
    ("tell", "number"),
    [
        pytest.param(os.kill, signal.SIGTERM, id="supervisor-SIGTERM"),
        pytest.param(os.killpg, signal.SIGTERM, id="group-SIGTERM"),
        pytest.param(os.killpg, signal.SIGINT, id="group-SIGINT"),
    ],
)
def test_the_first_signal_lets_all_batches_in_hand_finish(
    redis_env: dict[str, str], tell: Callable[[int, int], None], number: signal.Signals
) -> None:
    publish_some(12)
    with shut_gate() as gate, relays(redis_env, 2, "--batch-size", "5") as process:
        gate.wait_for(2)
        tell(process.pid, number)
        process.wait_for_line("finish the batches in hand")
        gate.open()
        assert process.wait() == 0
    assert states() == {"dispatched": 10, "pending": 2}
    assert not RelayHeartbeat.objects.exists()


def test_the_second_signal_ends_all_at_once_and_leaves_their_batches_pending(
    redis_env: dict[str, str],
) -> None:
    publish_some(12)
    with shut_gate() as gate, relays(redis_env | NOTICE_DEATH, 2, "--batch-size", "5") as process:
        gate.wait_for(2)
        os.killpg(process.pid, signal.SIGINT)
        process.wait_for_line("finish the batches in hand")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PROMPTLY_S) == 128 + signal.SIGINT
        gate.wait_for(0)
    assert states() == {"pending": 12}
    assert attempts() == {0}


def test_a_supervisor_of_processes_that_only_start_ends_well(redis_env: dict[str, str]) -> None:
    with relays(redis_env, 2) as process:
        process.wait_for_line("supervising 2 relay processes")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.output
