"""The endpoints for monitors: verdict, permission, and the age of a report."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError
from django.test import Client, override_settings
from django.urls import include, path
from health_check.exceptions import ServiceUnavailable, ServiceWarning
from health_check.views import HealthCheckView

from outbox import endpoints
from outbox.contrib.health_check import OutboxHealthCheck
from outbox.operations.health import get_health
from outbox.operations.health_report import Health, Verdict
from outbox.operations.recent_health import RecentHealth, worst_verdict
from tests.support.factories import make_delivery, make_relay
from tests.testapp.handlers import OTHER_QUEUE, QUEUE

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

urlpatterns = [
    path("outbox/", include("outbox.urls")),
    path("health", HealthCheckView.as_view(checks=["outbox.contrib.health_check.OutboxHealthCheck"])),
]


@pytest.fixture(autouse=True)
def fresh_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the health anew in each test."""
    recent = RecentHealth()
    monkeypatch.setattr(endpoints, "recent_health", recent)
    monkeypatch.setattr("outbox.contrib.health_check.recent_health", recent)


@pytest.fixture
def processes() -> None:
    """Let a relay and a worker of all queues be alive."""
    make_relay()
    make_relay(kind="worker", queues=f"{QUEUE},{OTHER_QUEUE}", threads=4)


def unreachable(_database: str) -> Health:
    raise OperationalError("connection refused by 10.0.0.7")


def test_a_process_is_alive_without_a_question_to_the_database(
    client: Client, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0):
        answer = client.get("/outbox/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert "no-store" in answer["Cache-Control"]


def test_an_anonymous_user_sees_the_verdict_alone(client: Client, processes: None) -> None:
    answer = client.get("/outbox/ready")
    assert (answer.status_code, answer.json()) == (200, {"verdict": "ok"})


def test_trouble_has_the_status_503(client: Client) -> None:
    make_delivery(state="pending")
    answer = client.get("/outbox/ready")
    assert (answer.status_code, answer.json()) == (503, {"verdict": "trouble"})


def test_a_warning_has_the_status_200(client: Client, processes: None) -> None:
    make_relay(problems=[{"kind": "relay_polls", "cause": "a pooler"}])
    answer = client.get("/outbox/ready")
    assert (answer.status_code, answer.json()) == (200, {"verdict": "warning"})


def test_a_user_with_the_permission_sees_the_report(client: Client, processes: None) -> None:
    user = User.objects.create_user("operator")
    client.force_login(user)
    assert client.get("/outbox/ready").json() == {"verdict": "ok"}
    user.user_permissions.add(Permission.objects.get(codename="view_delivery"))
    report = client.get("/outbox/ready").json()["databases"]["default"]
    assert report["sentence"] == "OK: no problem was found"
    assert (report["due"], report["relays_alive"], report["problems"]) == (0, 1, [])


@override_settings(OUTBOX={"HEALTH_PERMISSION": ""})
def test_without_a_permission_in_the_settings_everybody_sees_the_report(
    client: Client, processes: None
) -> None:
    assert client.get("/outbox/ready").json()["databases"]["default"]["verdict"] == "ok"


def test_a_database_that_does_not_answer_is_trouble_and_its_error_no_public_text(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "recent_health", RecentHealth(measure=unreachable))
    answer = client.get("/outbox/ready")
    assert (answer.status_code, answer.json()) == (503, {"verdict": "trouble"})
    with override_settings(OUTBOX={"HEALTH_PERMISSION": ""}):
        report = client.get("/outbox/ready").json()["databases"]["default"]
    assert report["sentence"] == (
        "Trouble: database 'default' does not answer: connection refused by 10.0.0.7"
    )


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_the_endpoints_are_read_only(client: Client, method: str) -> None:
    assert getattr(client, method)("/outbox/live").status_code == 405
    assert getattr(client, method)("/outbox/ready").status_code == 405


# ---------------------------------------------------------------- the age of a report


def test_a_report_is_measured_once_within_its_age() -> None:
    now, measured = [100.0], []

    def measure(database: str) -> Health:
        measured.append(database)
        return get_health(database)

    recent = RecentHealth(max_age_s=5, measure=measure, clock=lambda: now[0])
    first = recent.get("default")
    now[0] = 104.9
    assert recent.get("default") is first
    now[0] = 105.0
    assert recent.get("default") is not first
    assert measured == ["default", "default"]


def test_a_failed_measurement_is_not_kept(processes: None) -> None:
    answers: list[Any] = [unreachable, get_health]
    recent = RecentHealth(measure=lambda database: answers.pop(0)(database))
    with pytest.raises(OperationalError):
        recent.get("default")
    assert recent.get("default").verdict == Verdict.OK


def test_a_thread_waits_for_the_measurement_of_another_one_only_for_a_while() -> None:
    began, ends = threading.Event(), threading.Event()

    def measure(_database: str) -> Health:
        began.set()
        ends.wait(60)
        raise OperationalError("gone")

    recent = RecentHealth(max_wait_s=0.01, measure=measure)
    first = threading.Thread(target=recent.get_all)
    first.start()
    try:
        assert began.wait(60)
        assert worst_verdict(recent.get_all()) == Verdict.TROUBLE
        with pytest.raises(TimeoutError, match="an earlier measurement has not ended"):
            recent.get("default")
    finally:
        ends.set()
        first.join()


def test_the_worst_verdict_counts(processes: None) -> None:
    ok = get_health()
    assert worst_verdict({"a": ok}) == Verdict.OK
    assert worst_verdict({"a": ok, "b": OperationalError()}) == Verdict.TROUBLE


# ---------------------------------------------------------------- django-health-check


def test_the_health_check_passes_while_all_is_well(processes: None) -> None:
    OutboxHealthCheck().run()


def test_the_health_check_fails_with_the_kinds_of_the_problems() -> None:
    make_delivery(state="failed", error="ValueError: secret")
    make_delivery(state="pending")
    with pytest.raises(ServiceUnavailable) as caught:
        OutboxHealthCheck().run()
    assert "no_relay" in str(caught.value)
    assert "handler_fails" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_health_check_fails_without_the_database_and_hides_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outbox.contrib.health_check.recent_health", RecentHealth(measure=unreachable))
    with pytest.raises(ServiceUnavailable) as caught:
        OutboxHealthCheck().run()
    assert "does not answer" in str(caught.value)
    assert "10.0.0.7" not in str(caught.value)


def test_the_health_check_warns(processes: None) -> None:
    make_relay(problems=[{"kind": "relay_polls", "cause": "a pooler"}])
    with pytest.raises(ServiceWarning, match="relay_polls"):
        OutboxHealthCheck().run()


def test_the_view_of_django_health_check_shows_the_outbox(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The view runs checks in threads, which would not see the rows of this test.
    report = get_health()
    recent = RecentHealth(measure=lambda _database: report)
    monkeypatch.setattr("outbox.contrib.health_check.recent_health", recent)
    answer = client.get("/health?format=json")
    assert answer.status_code == 500
    assert "no_relay" in answer.content.decode()
