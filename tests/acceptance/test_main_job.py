"""The main job with real processes: publish, `run_relay`, `rundramatiq`, confirmed rows and effects."""

from __future__ import annotations

from collections import Counter

import pytest
from django.db import transaction

import outbox
from outbox.models import Delivery, Event, RelayHeartbeat
from tests.acceptance.folder import Folder
from tests.acceptance.stage import counted, ids, relay, run, states, wait_for_states, worker
from tests.helpers import publish, statuses
from tests.processes import wait_until
from tests.testapp.models import Effect, Shipment
from tests.testapp.tasks import resize

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


class ChangedMind(Exception):
    """Rolls a transaction back."""


def effects() -> dict[str, int]:
    """Return how often each handler has left its mark."""
    return dict(Counter(Effect.objects.values_list("handler", flat=True)))


def publish_one_of_each(address: str) -> Event:
    """Publish, in the current transaction, in every way there is; return the explicit event."""
    event = outbox.publish("test.recorded", {"address": address}, key=address)
    outbox.publish("flaky.mail")
    resize.send(7, width=200)
    Shipment.objects.create(address=address)
    return event


def test_what_is_committed_takes_effect_and_what_is_rolled_back_does_not(broker_env: dict[str, str]) -> None:
    with relay(broker_env) as process, worker(broker_env):
        with pytest.raises(ChangedMind), transaction.atomic():
            publish_one_of_each("rolled back")
            raise ChangedMind
        with transaction.atomic():
            with pytest.raises(ChangedMind), transaction.atomic():
                publish_one_of_each("rolled back to a savepoint")
                raise ChangedMind
            event = publish_one_of_each("committed")
        wait_for_states(succeeded=5)
        assert statuses(event) == {"record": "succeeded", "record_all": "succeeded"}
        assert set(Effect.objects.exclude(key="").values_list("key", flat=True)) == {"committed", "7"}
        assert effects() == {
            "record": 1,
            "record_all": 1,
            "flaky-try": 2,
            "flaky": 1,
            "resize": 1,
            "shipment_saved": 1,
        }
        wait_until(lambda: counted("succeeded") == counted("dispatched") == 5, what="the statistics")
        assert counted("retried") == 1
        process.terminate()
        assert process.wait() == 0
    assert not RelayHeartbeat.objects.exists()


@pytest.mark.redis
def test_a_worker_that_is_stopped_confirms_what_it_has_in_hand(
    redis_env: dict[str, str], folder: Folder
) -> None:
    folder.hold()
    events = [publish("filed.mail") for _ in range(4)]
    run(redis_env, "--drain")
    with worker(redis_env) as working:
        wait_until(lambda: len(folder.begun) == 4, what="the handlers to begin")
        working.terminate()
        working.wait_for_line("Stopping worker process")
        folder.let_go()
        assert working.wait() == 0
    assert sorted(folder.done) == sorted(ids(events))
    assert states() == {"succeeded": 4}


@pytest.mark.redis
def test_a_message_whose_delivery_was_deleted_harms_no_other(
    redis_env: dict[str, str], folder: Folder
) -> None:
    deleted = publish("filed.mail")
    run(redis_env, "--drain")
    Delivery.objects.all().delete()
    kept = publish("filed.mail")
    run(redis_env, "--drain")
    with worker(redis_env) as working:
        wait_for_states(succeeded=1)
        working.wait_for_line("no longer exists; its outcome is dropped")
    assert sorted(folder.done) == sorted(ids([deleted, kept]))
