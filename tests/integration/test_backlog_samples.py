"""Samples of the backlog, and the timeline of the whole outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from outbox.models import BacklogSample, HandlerStats, Tally
from outbox.models.clock import to_aware
from outbox.operations.backlog_sampling import sample_backlog
from outbox.operations.pruning import prune
from outbox.operations.timeline import TimelineStep, get_timeline
from relay.maintenance import Maintenance
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def keep(ago: timedelta, **figures: Any) -> None:
    """Write the sample of an earlier minute."""
    sample_backlog("default")
    row = BacklogSample.objects.latest("minute")
    BacklogSample.objects.filter(pk=row.pk).update(minute=row.minute - ago, **figures)


def sampled(steps: list[TimelineStep]) -> list[TimelineStep]:
    return [step for step in steps if step.backlog is not None]


def test_a_minute_has_one_sample_with_the_backlog() -> None:
    make_delivery(available_at=Now() - HOUR)
    make_delivery(waits_for="resume")
    make_delivery(state="dispatched")
    make_delivery(state="failed")
    assert sample_backlog("default")
    row = BacklogSample.objects.get()
    assert (row.due, row.waiting, row.unconfirmed, row.failed) == (1, 1, 1, 1)
    assert row.oldest_s >= 3600
    minute = to_aware(row.minute, "default")
    assert datetime.now(UTC) - 5 * MINUTE < minute < datetime.now(UTC)
    assert (minute.second, minute.microsecond) == (0, 0)


def test_a_second_relay_does_not_sample_the_same_minute() -> None:
    sample_backlog("default")
    BacklogSample.objects.add(due=7)
    # The second sample is there only if a minute has ended meanwhile.
    assert BacklogSample.objects.earliest("minute").due == 0


def test_the_events_of_the_last_full_minute_are_counted_as_published() -> None:
    now = datetime(2026, 1, 31, 9, 7, 30, tzinfo=UTC)
    for second in (-1, 0, 59, 60):
        make_event(created_at=datetime(2026, 1, 31, 9, 6, tzinfo=UTC) + timedelta(seconds=second))
    assert sample_backlog("default", now=now)
    assert BacklogSample.objects.get().published == 2


def test_a_relay_samples_the_backlog_after_the_end_of_the_minute() -> None:
    now = 1000.0
    maintenance = Maintenance(database="default", clock=lambda: now)
    maintenance.run_due_tasks()
    assert not BacklogSample.objects.exists()
    now += 62
    maintenance.run_due_tasks()
    assert BacklogSample.objects.exists()


def test_old_samples_are_pruned() -> None:
    keep(timedelta(days=40))
    keep(timedelta(days=2))
    prune("default")
    assert BacklogSample.objects.count() == 1


def test_the_timeline_has_the_largest_backlog_and_the_sum_of_events_of_each_step() -> None:
    keep(timedelta(minutes=30), published=4, due=3, waiting=1, unconfirmed=2, oldest_s=1.5)
    newest = BacklogSample.objects.get()
    other = newest.minute + (MINUTE if newest.minute.minute % 60 != 59 else -MINUTE)
    BacklogSample.objects.create(minute=other, published=5, due=1, oldest_s=9.0)
    (step,) = sampled(get_timeline(timedelta(days=1), HOUR))
    assert (step.published, step.backlog, step.oldest_s) == (9, 6, 9.0)
    assert step.start <= to_aware(newest.minute, "default") < step.start + HOUR


def test_the_timeline_sums_the_runs_of_registered_handlers() -> None:
    tally = Tally(dispatched=3)
    for result in ("succeeded", "succeeded", "retried", "failed"):
        tally.count(result, 0.1)
    HandlerStats.objects.add({"record": tally, "broken": tally, "monitored.function": tally})
    steps = get_timeline(HOUR, MINUTE)
    assert len(steps) == 60
    assert [step.is_partial for step in steps] == [False] * 59 + [True]
    (step,) = [step for step in steps if step.dispatched]
    assert (step.dispatched, step.succeeded, step.retried, step.failed) == (6, 4, 2, 2)


def test_a_step_without_a_sample_has_no_backlog() -> None:
    assert not sampled(get_timeline(HOUR, MINUTE))
