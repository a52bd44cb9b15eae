"""The health report: its figures, its problems, and the verdict."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F
from django.db.models.functions import Now, TruncMinute
from django.utils import timezone

from outbox.models import Delivery, HandlerStats, PausedHandler, ProcessHeartbeat
from outbox.operations.health import get_health
from outbox.operations.health_report import Health, Problem, ProblemKind, Verdict
from tests.support.factories import make_delivery, make_relay
from tests.testapp.handlers import OTHER_QUEUE, QUEUE

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def ago(**parts: float) -> Any:
    return Now() - timedelta(**parts)


def make_worker(*queues: str, **fields: Any) -> None:
    make_relay(kind="worker", queues=",".join(queues), threads=4, **fields)


@pytest.fixture
def processes() -> None:
    """Let a relay and a worker of all queues be alive."""
    make_relay()
    make_worker(QUEUE, OTHER_QUEUE)


def problem(health: Health, kind: ProblemKind) -> Problem:
    """Return the only problem of a kind."""
    (found,) = [one for one in health.problems if one.kind == kind]
    return found


def kinds(health: Health) -> list[ProblemKind]:
    return [one.kind for one in health.problems]


def test_an_outbox_with_its_processes_and_no_backlog_is_ok(processes: None) -> None:
    make_delivery(state="succeeded")
    health = get_health()
    assert (health.verdict, health.problems) == (Verdict.OK, ())
    assert health.sentence == "OK: no problem was found"
    assert (health.alive("relay"), health.alive("worker")) == (1, 1)
    assert health.measured_at.tzinfo is not None


def test_a_missing_relay_is_trouble_and_a_dead_one_is_named_with_its_age() -> None:
    assert problem(get_health(), ProblemKind.NO_RELAY).cause == "no relay is alive"
    make_relay(seen_at=ago(minutes=5))
    health = get_health()
    assert health.verdict == Verdict.TROUBLE
    assert health.sentence == "Trouble: no relay is alive; the last was seen 5 min ago"


def test_a_relay_in_trouble_is_reported_with_the_time_and_the_reason() -> None:
    make_relay(state="broker away", state_since=ago(minutes=4), detail="no route")
    found = problem(get_health(), ProblemKind.RELAY_IN_TROUBLE)
    assert found.cause == "relay web1:7: broker away for 4 min: no route"
    assert found.age_s is not None
    assert 240 <= found.age_s < 300


def test_a_relay_that_polls_because_it_cannot_listen_is_a_warning(processes: None) -> None:
    make_relay(problems=[{"kind": "relay_polls", "cause": "a pooler shares the sessions"}])
    health = get_health()
    assert health.verdict == Verdict.WARNING
    assert problem(health, ProblemKind.RELAY_POLLS).cause.endswith("a pooler shares the sessions")


# ---------------------------------------------------------------- unconfirmed deliveries


def unconfirmed(queue: str = QUEUE, *, due_ago: timedelta, **fields: Any) -> Delivery:
    """Write a delivery that was dispatched at once when it was due."""
    moment = Now() - due_ago
    return make_delivery(state="dispatched", queue=queue, available_at=moment, dispatched_at=moment, **fields)


def test_the_queues_have_their_workers_and_their_oldest_unconfirmed_delivery() -> None:
    make_worker(QUEUE)
    make_worker(QUEUE, OTHER_QUEUE)
    make_worker(OTHER_QUEUE, seen_at=ago(minutes=1))
    unconfirmed(due_ago=timedelta(seconds=30))
    unconfirmed(due_ago=timedelta(minutes=3))
    unconfirmed("elsewhere", due_ago=timedelta(minutes=10))
    queues = {queue.name: queue for queue in get_health().queues}
    assert (queues[QUEUE].workers, queues[QUEUE].threads, queues[QUEUE].unconfirmed) == (2, 8, 2)
    assert 180 <= queues[QUEUE].oldest_unconfirmed_s < 240
    assert (queues[OTHER_QUEUE].workers, queues[OTHER_QUEUE].unconfirmed) == (1, 0)
    assert (queues[""].workers, queues[""].unconfirmed) == (0, 1)


def test_unconfirmed_deliveries_of_a_queue_without_a_worker_are_trouble(processes: None) -> None:
    unconfirmed(due_ago=timedelta(minutes=2))
    assert ProblemKind.NO_WORKER not in kinds(get_health())
    make_worker_die()
    found = problem(get_health(), ProblemKind.NO_WORKER)
    assert (found.subject, found.count) == (QUEUE, 1)
    assert found.cause.startswith(f"no worker serves queue {QUEUE!r}")


def make_worker_die() -> None:
    ProcessHeartbeat.objects.workers().update(seen_at=ago(minutes=1))


def ran(handler: str, *, minutes_ago: int, succeeded: int = 1) -> None:
    row = HandlerStats.objects.create(handler=handler, bucket=timezone.now(), succeeded=succeeded)
    HandlerStats.objects.filter(pk=row.pk).update(bucket=TruncMinute(Now()) - minutes_ago * MINUTE)


def test_workers_that_confirm_nothing_are_trouble(processes: None) -> None:
    unconfirmed(due_ago=timedelta(minutes=10))
    ran("record", minutes_ago=0)
    assert ProblemKind.NOTHING_CONFIRMED not in kinds(get_health())
    HandlerStats.objects.update(bucket=F("bucket") - 5 * MINUTE)
    # A monitored function is no run.
    ran("shop.search", minutes_ago=0)
    found = problem(get_health(), ProblemKind.NOTHING_CONFIRMED)
    assert found.cause.startswith("no run has ended for ")
    assert found.subject == QUEUE


def test_an_unconfirmed_delivery_counts_as_lag_from_its_due_time(processes: None) -> None:
    make_delivery(state="dispatched", queue=QUEUE, available_at=ago(minutes=2), dispatched_at=Now())
    run("--max-lag", "3m")
    with pytest.raises(CommandError, match="oldest unconfirmed delivery has waited 2 min"):
        run("--max-lag", "60")


def test_a_delivery_of_a_full_batch_counts_from_its_dispatch(processes: None) -> None:
    make_delivery(state="dispatched", queue=QUEUE, available_at=ago(hours=-24), dispatched_at=ago(minutes=2))
    assert 120 <= get_health().figures.oldest_unconfirmed_s < 180


def test_a_redelivery_does_not_restart_the_age(processes: None) -> None:
    delivery = unconfirmed(due_ago=timedelta(minutes=2), confirm_by=ago(seconds=1))
    Delivery.objects.redeliver_overdue(limit=10, max_redeliveries=5)
    assert get_health().figures.oldest_due_s >= 120
    Delivery.objects.filter(pk=delivery.pk).mark_dispatched(timedelta(hours=1))
    assert get_health().figures.oldest_unconfirmed_s >= 120


# ---------------------------------------------------------------- other problems


def test_failing_handlers_are_grouped_with_their_last_error(processes: None) -> None:
    for handler, number in (("record", 2), ("broken", 1)):
        for index in range(number):
            make_delivery(state="failed", handler=handler, error=f"Traceback\nValueError: {index}")
    health = get_health()
    found = {one.subject: one for one in health.problems if one.kind == ProblemKind.HANDLER_FAILS}
    assert {handler: one.count for handler, one in found.items()} == {"broken": 1, "record": 2}
    assert found["record"].cause.startswith("record fails (2), the last time ")
    assert found["record"].cause.endswith(": ValueError: 1")
    assert health.figures.failed == 3


def test_paused_handlers_are_a_warning_with_the_number_that_waits(processes: None) -> None:
    PausedHandler.objects.pause("record", "no mail server")
    make_delivery(handler="record", waits_for="resume")
    health = get_health()
    assert health.verdict == Verdict.WARNING
    assert health.sentence == "Warning: record is paused, and 1 delivery waits: no mail server"


def test_problems_are_sorted_by_their_gravity(processes: None) -> None:
    PausedHandler.objects.pause("record")
    unconfirmed(due_ago=timedelta(minutes=2), confirm_by=ago(seconds=1))
    make_delivery(state="failed", handler="broken")
    health = get_health(max_lag=MINUTE)
    assert kinds(health) == [
        ProblemKind.NOTHING_CONFIRMED,
        ProblemKind.LAG,
        ProblemKind.HANDLER_FAILS,
        ProblemKind.OVERDUE,
        ProblemKind.PAUSED_HANDLER,
    ]
    assert health.sentence.endswith("; and 3 more")


def minute() -> Any:
    """Return the present minute of the database clock."""
    row = make_relay()
    return ProcessHeartbeat.objects.annotate(minute=TruncMinute(Now())).get(pk=row.pk).minute


def test_the_throughput_is_that_of_the_last_full_minute(processes: None, settings: Any) -> None:
    measured = None
    while measured is None:
        HandlerStats.objects.all().delete()
        begun = minute()
        ran("record", minutes_ago=1, succeeded=7)
        ran("broken", minutes_ago=1, succeeded=2)
        ran("record", minutes_ago=2, succeeded=100)
        ran("shop.search", minutes_ago=1, succeeded=1000)
        figures = get_health().figures
        # The minute may have ended in between.
        measured = figures.throughput_per_minute if minute() == begun else None
    assert measured == 9
    settings.OUTBOX = {"STATS": False}
    assert get_health().figures.throughput_per_minute is None


# ---------------------------------------------------------------- the command


def run(*args: str) -> str:
    out = StringIO()
    call_command("outbox_status", *args, stdout=out)
    return out.getvalue()


def test_the_command_exits_with_1_for_trouble_if_asked_to() -> None:
    run()
    with pytest.raises(CommandError, match="Trouble: no relay is alive"):
        run("--check")


def test_the_command_shows_problems_queues_and_processes(processes: None) -> None:
    make_relay(host="web9", seen_at=ago(minutes=2), state="running")
    make_delivery(state="failed", handler="broken")
    text = run()
    assert text.startswith("Trouble: broken fails (1)")
    lines = [line.split() for line in text.splitlines()]
    (dead,) = [line for line in lines if line and line[0] == "web9:7"]
    assert "dead" in dead
    assert "running" not in dead
    assert [QUEUE, "1", "4", "0", "-"] in lines
    record = json.loads(run("--format", "json"))
    assert (record["verdict"], record["problems"][0]["kind"]) == ("trouble", "handler_fails")
    assert (record["workers_alive"], record["relays_alive"]) == (1, 1)
    assert {process["kind"] for process in record["processes"]} == {"relay", "worker"}
