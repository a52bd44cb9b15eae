"""Jobs of operators: all deliveries that match a filter, in chunks, each once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

import outbox
from outbox.models import Delivery, OperatorJob
from outbox.models.delivery_verbs import DeliveryQuerySet
from outbox.operations.operator_jobs import preview, run_chunk
from outbox.operations.pruning import prune
from outbox.registry import registry
from tests.support.data_flow import relay_all
from tests.support.factories import make_delivery, make_event
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


def request(verb: str = "retry", **fields: Any) -> OperatorJob:
    job: OperatorJob = OperatorJob.objects.request(verb, requested_by="ann", **fields)
    return job


@contextmanager
def another_connection() -> Iterator[Any]:
    """Yield a cursor of another connection, whose locks end with the block."""
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            yield cursor
    finally:
        other.close()


def run_all(size: int = 2) -> None:
    while run_chunk("default", size=size).has_more:
        continue


def ids(state: str) -> list[int]:
    return sorted(Delivery.objects.filter(state=state).values_list("pk", flat=True))


def make_failed(count: int, **fields: Any) -> list[int]:
    return [make_delivery(state="failed", **fields).pk for _ in range(count)]


def test_a_job_retries_all_failed_deliveries_that_match() -> None:
    mail, other = make_failed(5, handler="shop.mail"), make_failed(2, handler="shop.other")
    job = request(handler="shop.mail")
    run_all()
    job.refresh_from_db()
    assert (ids("pending"), ids("failed")) == (mail, other)
    assert (job.state, job.changed) == ("done", 5)
    assert job.finished_at is not None


def test_a_job_matches_the_topic_of_the_event() -> None:
    paid = make_failed(1, event=make_event("shop.paid"))
    make_failed(2, event=make_event("shop.sent"))
    request(topic="shop.paid")
    run_all()
    assert ids("pending") == paid


def test_deliveries_that_fail_after_the_request_are_left_alone() -> None:
    first = make_failed(1)
    request()
    later = make_failed(1)
    run_all()
    assert (ids("pending"), ids("failed")) == (first, later)


def test_a_delivery_that_fails_again_is_not_retried_again_by_the_same_job() -> None:
    make_failed(4)
    request()
    run_chunk("default", size=2)
    Delivery.objects.pending().fail("again")
    run_all()
    assert set(Delivery.objects.values_list("resends", flat=True)) == {1}


def test_a_job_that_is_interrupted_continues_and_changes_no_delivery_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_failed(5)
    job = request()
    run_chunk("default", size=2)
    retry = DeliveryQuerySet.retry

    def retry_and_die(self: DeliveryQuerySet) -> int:
        retry(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(DeliveryQuerySet, "retry", retry_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_chunk("default", size=2)
    job.refresh_from_db()
    assert (job.changed, len(ids("pending"))) == (2, 2)
    monkeypatch.undo()
    run_all()
    job.refresh_from_db()
    assert (job.changed, job.state) == (5, "done")
    assert set(Delivery.objects.values_list("resends", flat=True)) == {1}


def test_a_stopped_job_changes_nothing_more() -> None:
    make_failed(5)
    job = request()
    run_chunk("default", size=2)
    assert OperatorJob.objects.filter(pk=job.pk).stop() == 1
    run_all()
    job.refresh_from_db()
    assert (job.state, job.changed, len(ids("failed"))) == ("stopped", 2, 3)
    assert OperatorJob.objects.filter(pk=job.pk).stop() == 0


def test_jobs_run_one_after_another() -> None:
    make_failed(3)
    first, second = request("discard", reason="old"), request("retry")
    run_all()
    for job in (first, second):
        job.refresh_from_db()
    assert (first.changed, second.changed) == (3, 0)
    assert set(Delivery.objects.values_list("state", flat=True)) == {"discarded"}


@pytest.mark.postgres
def test_a_job_waits_while_another_relay_works_on_the_job_before() -> None:
    make_failed(2)
    first, second = request(handler="shop.other"), request()
    with another_connection() as cursor:
        cursor.execute("SELECT 1 FROM outbox_operatorjob WHERE id = %s FOR UPDATE", [first.pk])
        assert run_chunk("default") == (0, False)
        second.refresh_from_db()
        assert second.state == "waiting"
    run_all()
    second.refresh_from_db()
    assert (second.state, second.changed) == ("done", 2)


@pytest.mark.postgres
def test_a_delivery_that_a_running_handler_locks_is_left_out() -> None:
    running, other = make_failed(2)
    job = request()
    with another_connection() as cursor:
        cursor.execute("SELECT 1 FROM outbox_delivery WHERE id = %s FOR UPDATE", [running])
        run_all()
    job.refresh_from_db()
    assert (job.state, job.changed, ids("failed"), ids("pending")) == ("done", 1, [running], [other])


def test_a_discard_unblocks_the_keys_of_a_handler_that_skips_failures() -> None:
    outbox.handler("shop.*", name="skips", queue_name=QUEUE, ordered=True, on_failure="skip")(print)
    try:
        fields = {"handler": "skips", "queue": QUEUE, "key": "order-7"}
        make_delivery(make_event("shop.paid"), "failed", **fields)
        make_delivery(make_event("shop.sent"), "failed", **fields)
        waiting = make_delivery(waits_for="key", **fields)
        request("discard", reason="old", topic="shop.paid")
        run_all()
        waiting.refresh_from_db()
        assert waiting.waits_for == ""
    finally:
        registry.remove("skips")


def test_a_discard_has_the_reason_and_the_operator() -> None:
    make_failed(1, error="ValueError: no")
    request("discard", reason="obsolete")
    run_all()
    assert Delivery.objects.get().error == "Discarded by ann: obsolete\n\nValueError: no"


def test_a_resend_takes_unconfirmed_deliveries() -> None:
    sent, failed = make_delivery(state="dispatched"), make_failed(1)
    request("resend")
    run_all()
    assert (ids("pending"), ids("failed")) == ([sent.pk], failed)


@pytest.mark.postgres
def test_a_chunk_is_a_bounded_number_of_statements() -> None:
    make_failed(30)
    request()
    with CaptureQueriesContext(connection) as few:
        run_chunk("default", size=5)
    with CaptureQueriesContext(connection) as many:
        run_chunk("default", size=20)
    assert len(few) == len(many) < 15


def test_without_a_job_one_statement_is_sent(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        assert run_chunk("default") == (0, False)


def test_the_preview_has_the_deliveries_of_the_job() -> None:
    chosen = make_failed(2, handler="shop.mail")
    make_failed(1, handler="shop.other")
    found = preview("default", "retry", handler="shop.mail")
    assert (found.number, found.is_exact) == (2, True)
    assert [each.pk for each in found.sample] == chosen


def test_a_topic_without_matches_costs_bounded_chunks_too() -> None:
    make_failed(5)
    job = request(topic="shop.unknown")
    assert run_chunk("default", size=2) == (0, True)
    job.refresh_from_db()
    assert (job.state, job.after_id) == ("running", ids("failed")[1])
    run_all()
    job.refresh_from_db()
    assert (job.state, job.changed) == ("done", 0)


def test_pruning_deletes_jobs_that_finished_long_ago() -> None:
    old, recent, waiting = (request() for _ in range(3))
    OperatorJob.objects.filter(pk__in=[old.pk, recent.pk]).stop()
    OperatorJob.objects.filter(pk=old.pk).update(finished_at=Now() - timedelta(days=31))
    prune("default")
    assert set(OperatorJob.objects.values_list("pk", flat=True)) == {recent.pk, waiting.pk}


def test_a_relay_runs_jobs() -> None:
    (failed,) = make_failed(1, handler="record", queue="x")
    request()
    relay_all()
    assert Delivery.objects.get(pk=failed).resends == 1
