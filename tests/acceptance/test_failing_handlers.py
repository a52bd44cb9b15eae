"""Handlers that raise, and workers that are killed while a handler runs."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from outbox.confirmations import Confirmations
from outbox.confirmations.outcome import Outcome
from outbox.models import Delivery
from tests.conftest import clear_redis
from tests.support.data_flow import publish
from tests.support.processes import wait_until
from tests.testapp.models import Effect

from .folder import Folder
from .stage import (
    age_redis_heartbeats,
    ids,
    make_overdue,
    relay,
    requeueing_soon,
    run,
    states,
    wait_for_states,
    waiting_in_broker,
    with_options,
    worker,
)

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def retry_in_admin(delivery: Delivery) -> None:
    """Select a delivery in the admin's list and run the action that retries it."""
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    address = reverse("admin:outbox_delivery_changelist")
    page = client.get(address).content.decode()
    assert "Refused: cannot handle" in page
    action = re.search(r'<option value="(retry\w*)"', page)
    assert action is not None
    answer = client.post(address, {"action": action[1], "_selected_action": [delivery.pk]}, follow=True)
    assert answer.status_code == 200


def test_a_failed_delivery_keeps_its_traceback_and_is_retried_from_the_admin(
    broker_env: dict[str, str],
) -> None:
    with relay(broker_env), worker(broker_env):
        event = publish("broken.mail", {"order": 7})
        wait_for_states(failed=1)
        delivery = event.deliveries.get()
        assert delivery.error.startswith("Traceback (most recent call last):")
        assert ", in broken\n" in delivery.error
        assert delivery.error.rstrip().endswith("Refused: cannot handle {'order': 7}")
        Effect.objects.create(handler="repaired", event_id=event.pk)
        retry_in_admin(delivery)
        wait_for_states(succeeded=1)
    assert Effect.objects.filter(handler="broken", event_id=event.pk).count() == 1
    assert LogEntry.objects.get().object_id == str(delivery.pk)


def outcome_of(delivery: Delivery, state: str, error: str) -> Outcome:
    """Return an outcome as a worker reports it."""
    return Outcome(delivery.ref, "default", "broken", state, "", 0.01, error)


@pytest.mark.parametrize("late", ["dispatched", "pending"])
def test_a_failure_is_kept_if_the_outcome_of_the_try_before_comes_later(
    transactional_db: None, late: str
) -> None:
    """Dramatiq enqueues a retry before the outbox reports it, so another thread may report first."""
    delivery = publish("broken.mail").deliveries.get()
    Delivery.objects.mark_dispatched(timedelta(hours=1))
    buffer = Confirmations()
    buffer.add(outcome_of(delivery, "failed", "for good"))
    buffer.add(outcome_of(delivery, late, "not yet"))
    buffer.close()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.error) == ("failed", "for good")


@pytest.mark.rabbitmq
def test_rabbitmq_requeues_the_message_of_a_killed_worker(
    process_env: dict[str, str], rabbitmq_url: str, folder: Folder
) -> None:
    env = process_env | {"OUTBOX_TEST_BROKER_URL": rabbitmq_url}
    (event,) = kill_a_worker_in_the_middle(env, folder)
    with worker(env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 0


@pytest.mark.redis
def test_a_relay_makes_redis_requeue_the_message_of_a_killed_worker(
    redis_env: dict[str, str], redis_url: str, folder: Folder
) -> None:
    env = redis_env | {"OUTBOX_TEST_BROKER_OPTIONS": json.dumps({"maintenance_chance": 0})}
    (event,) = kill_a_worker_in_the_middle(env, folder)
    age_redis_heartbeats(redis_url)
    make_overdue()
    with relay(env), worker(env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 0


@pytest.mark.redis
def test_the_message_of_a_killed_worker_is_redelivered_without_a_confirmation(
    redis_env: dict[str, str], redis_url: str, folder: Folder
) -> None:
    (event,) = kill_a_worker_in_the_middle(redis_env, folder)
    # Otherwise Redis gives the message to the next worker, after a minute.
    clear_redis(redis_url)
    make_overdue()
    with relay(redis_env), worker(redis_env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 1


def test_a_poison_message_fails_and_other_messages_run(broker_env: dict[str, str], folder: Folder) -> None:
    # A killed worker loses its unconfirmed outcomes, and their deliveries are redelivered.
    env = requeueing_soon(with_options(broker_env, CONFIRM_TIMEOUT=5))
    deadly = publish("deadly.mail")
    others = [publish("filed.mail") for _ in range(5)]
    wanted = {"failed": 1, "succeeded": 5}
    with relay(env):
        while states() != wanted:
            # Restart the worker as a supervisor does: Dramatiq ends when one of its worker processes dies.
            with worker(env) as process:
                wait_until(lambda: process.returncode is not None or states() == wanted, 60)
            assert len(folder.deaths) <= 3
    assert folder.deaths == [str(deadly.pk)] * 3
    assert set(folder.done) == set(ids(others))
    delivery = deadly.deliveries.get()
    assert delivery.error.startswith("crashed: 3 workers died")
    assert delivery.crashes == 3


def test_duplicates_of_a_failed_poison_message_do_not_run(broker_env: dict[str, str], folder: Folder) -> None:
    env = requeueing_soon(with_options(broker_env, MAX_CRASHES=1))
    deadly = publish("deadly.mail")
    run(env, "--drain")
    with worker(env) as doomed:
        wait_until(lambda: doomed.returncode is not None, 60)
    with worker(env):
        wait_for_states(failed=1)
        wait_until(
            lambda: not waiting_in_broker(env["OUTBOX_TEST_BROKER_URL"]), what="the duplicate to be dropped"
        )
    assert folder.deaths == [str(deadly.pk)]


def kill_a_worker_in_the_middle(env: dict[str, str], folder: Folder) -> list[str]:
    """Publish an event, kill the worker while it runs the handler, and return the event's id."""
    event = publish("filed.mail")
    run(env, "--drain")
    folder.hold()
    with worker(env) as doomed:
        wait_until(lambda: folder.begun, what="the handler to begin")
        doomed.kill()
    folder.resume()
    return ids([event])
