"""Publish, relay, run and confirm, with the real processes `run_relay` and `rundramatiq`."""

from __future__ import annotations

from collections import Counter

import pytest
from django.db import transaction

import outbox
from outbox.models import Delivery, Event, ProcessHeartbeat
from tests.support.data_flow import publish, states_of
from tests.support.processes import wait_until
from tests.testapp.models import Effect, Shipment
from tests.testapp.tasks import resize

from .folder import Folder
from .stage import counted, ids, relay, run, states, wait_for_states, worker

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


class ChangedMind(Exception):
    """Rolls a transaction back."""


def effects() -> dict[str, int]:
    """Return the number of effects by handler."""
    return dict(Counter(Effect.objects.values_list("handler", flat=True)))


def publish_one_of_each(address: str) -> Event:
    """Publish in every way, in the current transaction; return the event of `publish()`."""
    event = outbox.publish("test.recorded", {"address": address}, key=address)
    outbox.publish("flaky.mail")
    resize.send(7, width=200)
    Shipment.objects.create(address=address)
    return event


def test_committed_events_take_effect_and_rolled_back_ones_do_not(broker_env: dict[str, str]) -> None:
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
        assert states_of(event) == {"record": "succeeded", "record_all": "succeeded"}
        assert set(Effect.objects.exclude(key="").values_list("key", flat=True)) == {"committed", "7"}
        assert effects() == {
            "record": 1,
            "record_all": 1,
            "flaky-try": 2,
            "flaky": 1,
            "resize": 1,
            "shipment_saved": 1,
        }
        # The retry is a dispatch of its own.
        wait_until(lambda: (counted("succeeded"), counted("dispatched")) == (5, 6), what="the statistics")
        assert counted("retried") == 1
        process.terminate()
        assert process.wait() == 0
    assert not ProcessHeartbeat.objects.relays().exists()


@pytest.mark.redis
def test_a_stopping_worker_confirms_its_running_messages(redis_env: dict[str, str], folder: Folder) -> None:
    folder.hold()
    events = [publish("filed.mail") for _ in range(4)]
    run(redis_env, "--drain")
    with worker(redis_env) as working:
        wait_until(lambda: len(folder.begun) == 4, what="the handlers to begin")
        working.terminate()
        working.wait_for_line("Stopping worker process")
        folder.resume()
        assert working.wait() == 0
    assert sorted(folder.done) == sorted(ids(events))
    assert states() == {"succeeded": 4}


@pytest.mark.redis
def test_a_message_with_a_deleted_delivery_does_not_affect_others(
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
