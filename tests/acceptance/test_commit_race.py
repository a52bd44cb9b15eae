"""Between the dispatch of a batch and its commit, a relay is killed, or a worker confirms."""

from __future__ import annotations

import pytest

from tests.support.data_flow import publish
from tests.support.processes import wait_until

from .folder import Folder
from .gate import NOTICE_DEATH, shut_gate
from .stage import attempts, counted, ids, relay, run, states, wait_for_states, waiting_in_broker, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def test_messages_that_a_killed_relay_sent_without_a_commit_are_sent_again(
    broker_env: dict[str, str], broker_url: str, folder: Folder
) -> None:
    events = [publish("filed.mail") for _ in range(20)]
    deliveries = sorted(event.deliveries.get().pk for event in events)
    with shut_gate() as gate, relay(broker_env | NOTICE_DEATH) as doomed:
        gate.wait_for(1)
        assert waiting_in_broker(broker_url) == deliveries
        doomed.kill()
        gate.wait_for(0)
    assert states() == {"pending": 20}
    assert attempts() == {0}
    run(broker_env, "--drain")
    assert waiting_in_broker(broker_url) == sorted(deliveries * 2)
    with worker(broker_env):
        wait_for_states(succeeded=20)
    assert set(folder.done) == set(ids(events))


@pytest.mark.redis
def test_a_relay_does_not_wait_for_another_that_hangs(redis_env: dict[str, str]) -> None:
    for _ in range(10):
        publish("filed.mail")
    with shut_gate() as gate, relay(redis_env, "--batch-size", "4") as hanging:
        gate.wait_for(1)
        with relay(redis_env, "--batch-size", "4", "--once") as other:
            gate.wait_for(2)
            assert states() == {"pending": 10}
            gate.open()
            assert other.wait() == 0
        hanging.terminate()
        assert hanging.wait() == 0
    assert attempts(state="dispatched") == {1}


def test_a_confirmation_before_the_commit_of_the_relay_counts(
    broker_env: dict[str, str], folder: Folder
) -> None:
    event = publish("filed.mail")
    with shut_gate() as gate, worker(broker_env), relay(broker_env):
        gate.wait_for(1)
        # The statistics are written with the confirmation, which has skipped the locked row.
        wait_until(lambda: counted("succeeded") == 1, what="the worker to confirm")
        assert states() == {"pending": 1}
        gate.open()
        wait_for_states(succeeded=1)
    assert folder.done == ids([event])
    assert counted("succeeded") == 1
