"""A project with USE_TZ off, whose times are naive: the outbox behaves as with USE_TZ on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import transaction
from django.utils import timezone

from outbox import ReceivedEvent, publish, publish_many
from outbox.errors import InvalidTime
from outbox.models import Delivery, Event, HandlerStats
from outbox.operations.pruning import count_prunable, prune
from outbox.operations.retry import retry_matching
from outbox.operations.stats import get_series, get_stats
from outbox.testing import deliver
from relay.maintenance import Maintenance
from relay.messages.dispatch_ids import microseconds
from tests.support.data_flow import relay_all
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db(transaction=True)

# Half an hour off full hours, so that hours of the project are no hours of UTC.
ZONE = "Asia/Kolkata"


@pytest.fixture(autouse=True)
def _naive_times(settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = ZONE


def naive(moment: datetime) -> datetime:
    """Return the project's clock time of a moment."""
    return moment.astimezone(ZoneInfo(ZONE)).replace(tzinfo=None)


def due_in(event: Event) -> float:
    """Return the seconds from the database's time to the due time of an event."""
    (delivery, *_) = Delivery.objects.filter(event=event).extra(select={"now": "statement_timestamp()"})
    return (delivery.available_at - delivery.now).total_seconds()


def test_a_relay_prunes_events_past_their_retention() -> None:
    old = datetime.now(UTC) - timedelta(days=8)
    make_delivery(make_event(created_at=old), state="succeeded")
    kept = make_event(created_at=datetime.now(UTC) - timedelta(days=6))
    assert count_prunable("default") == 1
    Maintenance(database="default").pruning.prune()
    assert [event.pk for event in Event.objects.all()] == [kept.pk]


def test_pruning_keeps_an_event_until_the_end_of_its_retention() -> None:
    # The project's clock is 5.5 hours ahead of UTC's.
    make_event(created_at=datetime.now(UTC) - timedelta(days=7) + timedelta(minutes=5))
    assert prune("default") == 0


@pytest.mark.postgres
@pytest.mark.parametrize("many", [False, True], ids=["one event", "many events"])
@pytest.mark.parametrize("aware", [False, True], ids=["naive", "aware"])
def test_an_eta_is_the_projects_time(many: bool, aware: bool) -> None:
    eta = (datetime.now(UTC) if aware else timezone.now()) + timedelta(hours=1)
    with transaction.atomic():
        if many:
            (event, *_) = publish_many({"topic": "test.recorded", "eta": eta} for _n in range(20))
        else:
            event = publish("test.recorded", eta=eta)
    assert due_in(event) == pytest.approx(3600, abs=60)


@pytest.mark.parametrize("expires", [timedelta(minutes=-1), timedelta(minutes=1)])
def test_an_event_expires_at_the_projects_time(expires: timedelta) -> None:
    with transaction.atomic():
        event = publish("test.recorded", expires=timezone.now() + expires)
    relay_all()
    state = "dispatched" if expires > timedelta() else "discarded"
    assert set(event.deliveries.values_list("state", flat=True)) == {state}


def test_a_naive_time_is_refused_with_use_tz_on(settings: Any) -> None:
    settings.USE_TZ = True
    with transaction.atomic(), pytest.raises(InvalidTime, match="is naive; give an aware datetime"):
        publish("test.recorded", eta=datetime(2040, 1, 1))


def test_a_handler_gets_an_aware_time_of_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ReceivedEvent] = []
    monkeypatch.setattr("tests.testapp.handlers.record_effect", lambda _name, event: received.append(event))
    with transaction.atomic():
        publish("test.recorded")
    deliver(handlers=["record"])
    (published_at,) = (event.created_at for event in received)
    assert published_at is not None
    assert abs(published_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_deliver_runs_deliveries_due_at_the_projects_time() -> None:
    with transaction.atomic():
        publish("test.recorded", eta=timezone.now() + timedelta(hours=1))
    assert deliver().succeeded == 0
    assert deliver(now=timezone.now() + timedelta(hours=2)).succeeded == 2


def test_the_dispatch_id_has_the_moment_of_the_database_in_the_repeated_hour_of_autumn(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    repeated = datetime(2030, 10, 27, 2, 30)
    first, second = (microseconds(repeated.replace(fold=fold)) for fold in (0, 1))
    assert second - first == 3_600_000_000


@pytest.mark.postgres
def test_statistics_are_read_since_a_time_of_the_project() -> None:
    HandlerStats.objects.create(handler="mail", bucket=timezone.now(), succeeded=2)
    (summary,) = get_stats(since=timezone.now() - timedelta(minutes=5))
    assert summary.succeeded_runs == 2
    assert get_stats(since=timezone.now() + timedelta(minutes=5)) == []


@pytest.mark.postgres
@pytest.mark.parametrize("step", [timedelta(minutes=1), timedelta(minutes=15), timedelta(hours=1)])
def test_a_series_counts_each_run_in_its_step(step: timedelta) -> None:
    moment = datetime.now(UTC) - 3 * step
    HandlerStats.objects.create(handler="mail", bucket=naive(moment), succeeded=2)
    (slot,) = (slot for slot in get_series(24 * step, step)["mail"] if slot.succeeded)
    assert slot.start <= moment < slot.start + step


@pytest.mark.postgres
def test_failed_deliveries_are_retried_since_a_time() -> None:
    make_delivery(state="failed")
    assert retry_matching("default", since=datetime.now(UTC) + timedelta(minutes=5)) == 0
    assert retry_matching("default", since=datetime.now(UTC) - timedelta(minutes=5)) == 1
