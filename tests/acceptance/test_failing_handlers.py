"""Handlers that raise, and workers that are killed while a handler runs."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.urls import reverse

import outbox
from outbox.confirmations import Confirmations
from outbox.models import Delivery
from outbox.outcomes import Outcome
from tests.acceptance.folder import Folder
from tests.acceptance.stage import (
    ids,
    relay,
    requeueing_soon,
    run,
    states,
    wait_for_states,
    waiting_in_broker,
    with_options,
    worker,
)
from tests.conftest import clear_redis
from tests.helpers import publish
from tests.processes import wait_until
from tests.testapp.models import Effect

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def retry_in_admin(delivery: Delivery) -> None:
    """Tick a delivery in the admin's list and choose the action that retries it."""
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
        Effect.objects.create(handler="mended", event_id=event.pk)
        retry_in_admin(delivery)
        wait_for_states(succeeded=1)
    assert Effect.objects.filter(handler="broken", event_id=event.pk).count() == 1
    assert LogEntry.objects.get().object_id == str(delivery.pk)


def report(delivery: Delivery, status: str, error: str) -> Outcome:
    """Return an outcome as a worker has it."""
    return Outcome(delivery.pk, "default", "broken", status, "", 0.01, error)


@pytest.mark.parametrize("late", ["dispatched", "pending"])
def test_a_failure_stands_though_the_report_of_the_try_before_comes_later(
    transactional_db: None, late: str
) -> None:
    """Dramatiq enqueues a retry before it lets the outbox report it: another thread may be quicker."""
    delivery = publish("broken.mail").deliveries.get()
    Delivery.objects.mark_dispatched(timedelta(hours=1))
    reports = Confirmations()
    reports.add(report(delivery, "failed", "for good"))
    reports.add(report(delivery, late, "not yet"))
    reports.close()
    delivery.refresh_from_db()
    assert (delivery.status, delivery.error) == ("failed", "for good")


@pytest.mark.parametrize("at_once", [True, False])
def test_what_a_retry_gave_back_stays_pending_though_the_report_of_the_retry_comes_later(
    transactional_db: None, at_once: bool
) -> None:
    """It would wait for a confirmation that nobody is going to send."""
    delivery = publish("broken.mail").deliveries.get()
    Delivery.objects.mark_dispatched(timedelta(hours=1))
    reports = Confirmations()
    reports.add(report(delivery, "pending", "to go one by one"))
    if not at_once:
        wait_until(reports.flush, what="the first report to be written")
    reports.add(report(delivery, "dispatched", "to be retried"))
    reports.close()
    delivery.refresh_from_db()
    assert (delivery.status, delivery.confirm_by) == ("pending", None)


@pytest.mark.rabbitmq
def test_rabbitmq_gives_the_message_of_a_killed_worker_to_the_next(
    process_env: dict[str, str], rabbitmq_url: str, folder: Folder
) -> None:
    env = process_env | {"OUTBOX_TEST_BROKER_URL": rabbitmq_url}
    (event,) = kill_a_worker_in_the_middle(env, folder)
    with worker(env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 0


@pytest.mark.redis
def test_a_relay_has_redis_give_the_message_of_a_killed_worker_to_the_next(
    redis_env: dict[str, str], folder: Folder
) -> None:
    env = with_options(redis_env, CONFIRM_TIMEOUT=2)
    env |= {"OUTBOX_TEST_BROKER_OPTIONS": json.dumps({"heartbeat_timeout": 2000, "maintenance_chance": 0})}
    (event,) = kill_a_worker_in_the_middle(env, folder)
    wait_until(Delivery.objects.overdue().exists, what="the confirmation to be overdue")
    with relay(env), worker(env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 0


@pytest.mark.redis
def test_the_message_of_a_killed_worker_is_sent_again_when_nobody_confirms_it(
    redis_env: dict[str, str], redis_url: str, folder: Folder
) -> None:
    env = with_options(redis_env, CONFIRM_TIMEOUT=2)
    (event,) = kill_a_worker_in_the_middle(env, folder)
    # Else Redis gives it to the next worker, after a minute.
    clear_redis(redis_url)
    wait_until(Delivery.objects.overdue().exists, what="the confirmation to be overdue")
    with relay(env), worker(env):
        wait_for_states(succeeded=1)
    assert (folder.begun, folder.done) == ([event] * 2, [event])
    assert Delivery.objects.get().redeliveries == 1


def test_a_message_that_kills_its_workers_fails_and_the_others_go_on(
    broker_env: dict[str, str], folder: Folder
) -> None:
    # A worker that is killed takes outcomes with it that it had not confirmed yet; these deliveries go again.
    env = requeueing_soon(with_options(broker_env, CONFIRM_TIMEOUT=5))
    deadly = publish("deadly.mail")
    others = [publish("filed.mail") for _ in range(5)]
    wanted = {"failed": 1, "succeeded": 5}
    with relay(env):
        while states() != wanted:
            # As a supervisor does: Dramatiq's master process ends when one of its workers dies.
            with worker(env) as process:
                wait_until(lambda: process.returncode is not None or states() == wanted, 60)
            assert len(folder.deaths) <= 3
    assert folder.deaths == [str(deadly.pk)] * 3
    assert set(folder.done) == set(ids(others))
    delivery = deadly.deliveries.get()
    assert delivery.error.startswith("crashed: 3 workers died")
    assert delivery.crashes == 3


def test_of_a_pack_that_kills_its_workers_only_the_bad_one_fails(
    broker_env: dict[str, str], folder: Folder
) -> None:
    env = requeueing_soon(with_options(broker_env, CONFIRM_TIMEOUT=5))
    with transaction.atomic():
        events = outbox.publish_many(
            {"topic": "heap.it", "payload": "deadly" if n == 4 else n} for n in range(10)
        )
    deadly = events.pop(4)
    wanted = {"failed": 1, "succeeded": 9}
    with relay(env):
        while states() != wanted:
            with worker(env) as process:
                wait_until(lambda: process.returncode is not None or states() == wanted, 60)
            assert len(folder.deaths) <= 3
    assert folder.deaths == [str(deadly.pk)] * 3
    assert set(folder.done) == set(ids(events))
    # What another thread ran when the worker died counts a crash as well, so others may have some.
    assert Delivery.objects.get(status="failed").error.startswith("crashed: 3 workers died")


def test_the_copies_of_a_message_that_killed_its_workers_are_not_run(
    broker_env: dict[str, str], folder: Folder
) -> None:
    env = requeueing_soon(with_options(broker_env, MAX_CRASHES=1))
    deadly = publish("deadly.mail")
    run(env, "--drain")
    with worker(env) as doomed:
        wait_until(lambda: doomed.returncode is not None, 60)
    with worker(env):
        wait_for_states(failed=1)
        wait_until(
            lambda: not waiting_in_broker(env["OUTBOX_TEST_BROKER_URL"]), what="the copy to be dropped"
        )
    assert folder.deaths == [str(deadly.pk)]


def kill_a_worker_in_the_middle(env: dict[str, str], folder: Folder) -> list[str]:
    """Publish an event, kill the worker that runs its handler, and return the event's id."""
    event = publish("filed.mail")
    run(env, "--drain")
    folder.hold()
    with worker(env) as doomed:
        wait_until(lambda: folder.begun, what="the handler to begin")
        doomed.kill()
    folder.let_go()
    return ids([event])
