"""Unconfirmed deliveries that an operator resends, beside handlers that run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from django.db import connection, transaction

from outbox.models import Delivery
from outbox.operations.retry import Retried, retry_ids
from tests.support.data_flow import clear_broker, flush, publish, relay_all, states_of, worker
from tests.support.factories import make_delivery
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.postgres
def test_a_delivery_that_runs_just_now_is_not_resent() -> None:
    running, lost = make_delivery(state="dispatched"), make_delivery(state="dispatched")
    locked, done = Event(), Event()

    def run() -> None:
        # As a transactional handler does before its effects.
        with transaction.atomic():
            Delivery.objects.settle([running.ref])
            locked.set()
            assert done.wait(30)
        connection.close()

    with ThreadPoolExecutor(1) as thread:
        run_of_handler = thread.submit(run)
        try:
            assert locked.wait(30)
            assert retry_ids("default", [running.pk, lost.pk]) == Retried(unconfirmed=1, running=1)
        finally:
            done.set()
        run_of_handler.result()
    assert set(Delivery.objects.values_list("pk", "state")) == {
        (running.pk, "succeeded"),
        (lost.pk, "pending"),
    }


def test_a_delivery_whose_message_is_lost_runs_after_it_was_resent() -> None:
    clear_broker()
    event = publish("test.recorded")
    relay_all()
    clear_broker()
    ids = list(event.deliveries.unconfirmed().values_list("pk", flat=True))
    assert retry_ids("default", ids) == Retried(unconfirmed=len(ids))
    relay_all()
    with worker():
        wait_until(
            lambda: flush() or set(states_of(event).values()) == {"succeeded"}, what="the deliveries to run"
        )
    clear_broker()
