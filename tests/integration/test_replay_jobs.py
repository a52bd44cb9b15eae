"""Replays as jobs of an operator: chunks, position, rate, and the handlers that get the events."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone

import outbox
from outbox import TransactionalActor, current_event
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event, OperatorJob
from outbox.operations import replay_jobs
from outbox.operations.operator_jobs import run_chunk
from outbox.operations.replay_jobs import preview_replay
from outbox.registry import registry
from tests.support.data_flow import publish, relay_all, worker
from tests.support.factories import make_delivery, make_event
from tests.support.names import unique_name
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


def long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


def request(topic: str = "test.*", **fields: Any) -> OperatorJob:
    span = {"since": timezone.now() - timedelta(days=1), "until": timezone.now()}
    job: OperatorJob = OperatorJob.objects.request(
        "replay", requested_by="ann", topic=topic, **{**span, **fields}
    )
    return job


def run_all(size: int = 2) -> None:
    while run_chunk("default", size=size).has_more:
        continue


def written() -> Counter[tuple[str, str]]:
    """Count the deliveries by topic and handler."""
    return Counter(Delivery.objects.values_list("event__topic", "handler"))


def test_a_job_replays_all_events_that_match_once() -> None:
    for number in range(5):
        make_event("test.recorded", key=f"k{number % 2}")
    make_event("other.topic", key="k0")
    job = request(handler="record", key="k0")
    run_all()
    job.refresh_from_db()
    assert written() == {("test.recorded", "record"): 3}
    assert (job.state, job.changed) == ("done", 3)
    run_all()
    assert Delivery.objects.count() == 3


def test_the_subscribed_handlers_get_the_events_if_none_is_chosen() -> None:
    make_event("test.recorded")
    request()
    run_all()
    assert written() == {("test.recorded", "record"): 1, ("test.recorded", "record_all"): 1}


def test_events_outside_the_span_are_left_alone() -> None:
    make_event("test.recorded", created_at=timezone.now() - timedelta(days=3))
    inside = make_event("test.recorded", created_at=timezone.now() - timedelta(hours=3))
    request(handler="record", until=timezone.now() - timedelta(hours=1))
    make_event("test.recorded")
    run_all()
    assert [one.event_id for one in Delivery.objects.all()] == [inside.pk]


def test_a_job_that_was_interrupted_continues_after_its_last_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        make_event("test.recorded")
    job = request(handler="record")
    run_chunk("default", size=2)
    replay = replay_jobs.replay_events

    def fail(*arguments: Any, **options: Any) -> Any:
        replay(*arguments, **options)
        raise RuntimeError("killed before the commit")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(replay_jobs, "replay_events", fail)
        run_chunk("default", size=2)
    assert Delivery.objects.count() == 2
    run_all()
    job.refresh_from_db()
    assert set(Counter(Delivery.objects.values_list("event_id", flat=True)).values()) == {1}
    assert (Delivery.objects.count(), job.changed) == (5, 5)


def test_a_stopped_job_goes_no_further() -> None:
    for _ in range(4):
        make_event("test.recorded")
    job = request(handler="record")
    run_chunk("default", size=2)
    OperatorJob.objects.filter(pk=job.pk).stop()
    run_all()
    assert Delivery.objects.count() == 2


def test_a_job_keeps_to_its_rate_and_does_not_keep_other_jobs_waiting() -> None:
    for _ in range(12):
        make_event("test.recorded")
    job = request(handler="record", rate=3)
    failed = make_delivery(state="failed")
    retry = OperatorJob.objects.request("retry", requested_by="ann")
    # In its first second.
    OperatorJob.objects.filter(pk=job.pk).update(requested_at=timezone.now())
    run_all(size=100)
    first = Delivery.objects.filter(handler="record").count()
    assert 3 <= first <= 11
    retry.refresh_from_db()
    failed.refresh_from_db()
    assert (retry.state, failed.state) == ("done", "pending")
    OperatorJob.objects.filter(pk=job.pk).update(requested_at=F("requested_at") - timedelta(minutes=1))
    run_all(size=100)
    assert Delivery.objects.filter(handler="record").count() == 12


def test_a_job_of_a_handler_that_is_gone_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    make_event("test.recorded")
    job = request(handler="shop.gone")
    run_all()
    job.refresh_from_db()
    assert job.state == "stopped"
    assert "no code declares its handler 'shop.gone'" in caplog.text


def test_a_preview_counts_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        make_event("test.recorded")
    make_event("other.topic")
    found = preview_replay("default", topic="test.*", since=long_ago(), until=now())
    assert (found.events, found.deliveries, found.is_exact) == (3, 6, True)
    assert [one.topic for one in found.sample] == ["test.recorded"] * 3
    assert not Delivery.objects.exists()
    monkeypatch.setattr(replay_jobs, "PREVIEW_LIMIT", 2)
    found = preview_replay("default", topic="test.*", since=long_ago(), until=now(), handler="record")
    assert (found.events, found.deliveries, found.is_exact) == (2, 2, False)


def test_events_of_the_replayed_handlers_are_not_replayed_themselves() -> None:
    make_event("test.recorded")
    request(handler="record")
    make_event("test.recorded", created_at=timezone.now() + timedelta(seconds=5))
    run_all()
    assert Delivery.objects.count() == 1
    assert Event.objects.count() == 2


@pytest.mark.parametrize("kind", ["event", "batch", "actor"])
def test_handlers_see_that_an_event_is_replayed(kind: str) -> None:
    name, seen = unique_name(), list[bool]()

    def note(*_arguments: Any) -> None:
        event = current_event()
        assert event is not None
        seen.append(event.replayed)

    if kind == "actor":
        actor = dramatiq.actor(note, actor_class=TransactionalActor, actor_name=name, queue_name=QUEUE)
        with transaction.atomic():
            actor.send()
    else:
        batch = {"batch_size": 5, "batch_wait": timedelta()} if kind == "batch" else {}
        outbox.handler("replayed.here", name=name, queue_name=QUEUE, **batch)(
            (lambda events: seen.extend(one.replayed for one in events)) if batch else note
        )
        publish("replayed.here")
    try:
        relay_and_run()
        request("*", handler=name)
        run_all()
        relay_and_run()
    finally:
        registry.remove(name)
    assert seen == [False, True]


def relay_and_run() -> None:
    """Dispatch all due deliveries, and wait until their handlers have run."""
    with worker():
        relay_all()
        wait_until(
            lambda: confirmations.flush() and not Delivery.objects.unconfirmed().exists(), what="the outcomes"
        )
