"""The overview of the admin, its search, and the panel of the home page."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError
from django.db.models.functions import Now
from django.test import Client
from django.urls import path
from django.utils import timezone

from outbox.admin import panel
from outbox.models import PausedHandler
from outbox.operations import finding
from outbox.operations.doctor import Finding
from outbox.operations.error_groups import error_groups
from outbox.operations.handler_activity import get_handler_activity
from outbox.operations.health import get_health
from outbox.operations.health_report import ProblemKind
from tests.support.admin_pages import DELIVERIES, EVENTS, page, state
from tests.support.factories import make_delivery, make_event, make_relay

pytestmark = pytest.mark.django_db

OVERVIEW = "/admin/outbox/backlogsample/"
DOCTOR = f"{OVERVIEW}doctor/"
SEARCH = f"{OVERVIEW}search/"


@pytest.fixture
def viewer(client: Client) -> Client:
    """Return the client of a user with the view permissions only."""
    return client_with(client, Permission.objects.filter(codename__startswith="view_"))


def client_with(client: Client, permissions: Any) -> Client:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(permissions)
    client.force_login(user)
    return client


def search(client: Client, term: str, **fields: str) -> Any:
    return client.post(SEARCH, {"q": term, **fields})


def hits(client: Client, term: str, **fields: str) -> list[str]:
    response = search(client, term, **fields)
    assert response.status_code == 200, response.headers.get("Location")
    return [str(hit.text) for hit in response.context["search"].hits]


# ---------------------------------------------------------------- the page


def test_the_overview_is_the_first_page_of_the_section(admin_client: Client) -> None:
    text = page(admin_client, "/admin/outbox/")
    assert 0 < text.index(OVERVIEW) < text.index(DELIVERIES)


def test_the_overview_shows_verdict_problems_and_figures(admin_client: Client) -> None:
    make_delivery(state="failed", error="Traceback\nValueError: no address")
    text = page(admin_client, OVERVIEW)
    assert 'data-verdict="trouble"' in text
    assert "no relay is alive" in text
    assert "ValueError: no address" in text
    assert f"{DELIVERIES}?state=failed" in text


def test_the_overview_of_a_healthy_outbox_says_so(admin_client: Client) -> None:
    make_relay()
    text = page(admin_client, OVERVIEW)
    assert 'data-verdict="ok"' in text
    assert "no problem was found" in text


def test_a_refresh_has_the_figures_alone(admin_client: Client) -> None:
    text = page(admin_client, OVERVIEW, part="live")
    assert "<html" not in text
    assert "outbox-timeline" in text
    assert "outbox-timeline" not in page(admin_client, OVERVIEW, part="live", charts="no")


@pytest.mark.parametrize(("period", "steps"), [("hour", 60), ("day", 96), ("week", 84), ("nonsense", 60)])
def test_the_charts_have_one_row_for_each_step(admin_client: Client, period: str, steps: int) -> None:
    assert page(admin_client, OVERVIEW, part="live", period=period).count("<tr data-at=") == steps


def test_numbers_have_separators_and_times_a_zone(admin_client: Client) -> None:
    make_relay(kind="worker", threads=1234)
    text = page(admin_client, OVERVIEW)
    assert "1,234" in text
    assert 'class="outbox-zone"' in text


def test_the_overview_needs_a_permission_of_its_own(client: Client) -> None:
    client_with(client, Permission.objects.filter(codename="view_delivery"))
    assert client.get(OVERVIEW).status_code == 403
    assert search(client, "1").status_code == 403


# ---------------------------------------------------------------- problems and their buttons


def test_a_blocked_key_is_retried_from_the_overview(admin_client: Client) -> None:
    head = make_delivery(state="failed", handler="in_order", key="order-7")
    make_delivery(handler="in_order", key="order-7", waits_for="key")
    text = page(admin_client, OVERVIEW)
    assert f"{DELIVERIES}{head.pk}/discard/?overview=1" in text
    response = admin_client.post(f"{DELIVERIES}{head.pk}/retry/", {"overview": "1"})
    assert response.headers["Location"] == OVERVIEW
    assert state(head) == "pending"


def test_a_paused_handler_is_resumed_from_the_overview(admin_client: Client) -> None:
    PausedHandler.objects.pause("record", "no mail server")
    assert "record is paused" in page(admin_client, OVERVIEW).replace("<wbr>", "")
    url = "/admin/outbox/pausedhandler/resume/"
    response = admin_client.post(url, {"handler": "record", "overview": "1"})
    assert response.headers["Location"] == OVERVIEW
    assert not PausedHandler.objects.exists()


def test_a_viewer_gets_links_and_no_buttons(viewer: Client) -> None:
    make_delivery(state="failed", handler="in_order", key="order-7")
    make_delivery(handler="in_order", key="order-7", waits_for="key")
    PausedHandler.objects.pause("record")
    text = page(viewer, OVERVIEW)
    assert "Show failed deliveries" in text
    for address in ("/retry/", "/discard/", "/pause/", "/resume/"):
        assert address not in text


def test_failed_deliveries_are_grouped_by_error_without_its_numbers() -> None:
    for number in range(3):
        make_delivery(state="failed", error=f"Traceback {number}\nKeyError: {number}")
    make_delivery(state="failed", error="ValueError: no", finished_at=Now() - timedelta(hours=1))
    groups = error_groups("default", "tests.mail", limit=5)
    assert [group.count for group in groups] == [3, 1]
    assert groups[0].error.startswith("KeyError: ")
    assert groups[1].error == "ValueError: no"
    assert groups[0].first_at <= groups[0].last_at
    assert groups[1].first_at < groups[0].first_at


def test_events_of_a_topic_that_no_handler_ever_had_are_a_problem(admin_client: Client) -> None:
    make_event("test.recordd")
    make_event("shop.recordd")
    make_delivery(make_event("shop.removed_handler"))
    found = [one for one in get_health().problems if one.kind == ProblemKind.UNHANDLED_TOPIC]
    assert [one.subject for one in found] == ["shop.recordd"]
    assert "1 event" in found[0].cause
    assert f"{EVENTS}?topic=shop.recordd" in page(admin_client, OVERVIEW)


# ---------------------------------------------------------------- handlers, processes, actions


def test_failing_handlers_come_first_and_paused_ones_second() -> None:
    make_delivery(state="failed", handler="record_all")
    make_delivery(handler="flaky")
    make_delivery(state="dispatched", handler="flaky")
    PausedHandler.objects.pause("record", "no mail server")
    make_delivery(handler="record", waits_for="resume")
    first, second, *others = get_handler_activity("default", [])
    assert (first.name, first.failed) == ("record_all", 1)
    assert (second.name, second.waiting, second.pause_reason) == ("record", 1, "no mail server")
    flaky = next(each for each in others if each.name == "flaky")
    assert (flaky.due, flaky.unconfirmed, flaky.failed) == (1, 1, 0)


def test_a_dead_process_is_shown_as_dead(admin_client: Client) -> None:
    make_relay(host="web1", seen_at=Now() - timedelta(minutes=5))
    assert ">dead</span>" in page(admin_client, OVERVIEW)


def test_a_relay_shows_what_it_has_dispatched(admin_client: Client) -> None:
    make_relay(dispatched=12_345, last_dispatch_at=Now() - timedelta(minutes=2))
    assert "dispatched 12,345, the last 2" in page(admin_client, OVERVIEW)
    assert get_health().processes[0].last_dispatch_s == pytest.approx(120, abs=60)


def test_an_action_on_many_rows_is_one_of_the_last_actions(admin_client: Client, admin_user: User) -> None:
    rows = [make_delivery(state="failed") for _ in range(3)]
    LogEntry.objects.log_actions(admin_user.pk, rows, 2, "Retried.")
    LogEntry.objects.log_actions(admin_user.pk, [rows[0]], 2, "Discarded by admin: spam")
    actions = admin_client.get(OVERVIEW).context["recent_actions"]
    assert [(action.message, action.rows) for action in actions] == [
        ("Discarded by admin: spam", f"tests.mail #{rows[0].pk}"),
        ("Retried.", "3 rows"),
    ]


def test_a_paused_handler_without_runs_is_in_the_statistics(admin_client: Client) -> None:
    PausedHandler.objects.pause("record")
    rows = admin_client.get("/admin/outbox/handlerstats/").context["rows"]
    assert [(row.summary.handler, row.pause_state.is_paused) for row in rows] == [("record", True)]


# ---------------------------------------------------------------- search


@pytest.mark.parametrize("text", ["{0}", "#{0}", "tests.mail #{0}", "delivery {0}"])
def test_a_number_of_a_delivery_leads_to_its_page(admin_client: Client, text: str) -> None:
    delivery = make_delivery()
    response = search(admin_client, text.format(delivery.pk))
    assert response.headers["Location"] == f"{DELIVERIES}{delivery.pk}/change/"


def test_an_event_id_or_a_key_of_one_event_leads_to_its_page(admin_client: Client) -> None:
    event = make_event(key="order-7")
    for term in (str(event.pk), event.pk.hex, "order-7"):
        assert search(admin_client, term).headers["Location"] == f"{EVENTS}{event.pk}/change/"


def test_a_correlation_id_finds_the_events_of_its_chain(admin_client: Client) -> None:
    root = make_event()
    caused = make_event("shop.mail_sent", headers={"correlation_id": str(root.pk)})
    make_event(headers={"correlation_id": str(caused.pk)})
    assert hits(admin_client, str(root.pk)) == [f"shop.order_paid {root.pk}", f"shop.mail_sent {caused.pk}"]


def test_a_payload_is_searched_by_its_text(admin_client: Client) -> None:
    event = make_event(payload={"mail": "Mia.Müller@example.com"})
    make_event(payload={"mail": "ben@example.com"})
    for term in ("mia.m", "Müller", f"{event.payload['mail']}"):
        assert hits(admin_client, term, place="payloads") == [f"shop.order_paid {event.pk}"]
    assert hits(admin_client, "nobody", place="payloads") == []


def test_an_error_is_searched_by_its_text(admin_client: Client) -> None:
    delivery = make_delivery(state="failed", error="Traceback\nValueError: no address")
    assert hits(admin_client, "no ADDRESS", place="errors") == [f"tests.mail #{delivery.pk}"]


def test_a_search_by_text_reads_only_the_newest_rows(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "ROWS_LIMIT", 1)
    make_event(payload={"n": "old"})
    make_event(payload={"n": "new"})
    assert hits(admin_client, "old", place="payloads") == []
    assert len(hits(admin_client, "new", place="payloads")) == 1


def test_a_search_by_text_finds_no_row_before_its_period(admin_client: Client) -> None:
    make_event(payload={"n": "text"}, created_at=timezone.now() - timedelta(days=3))
    assert hits(admin_client, "text", place="payloads", period="day") == []
    assert len(hits(admin_client, "text", place="payloads", period="week")) == 1


def test_a_search_needs_a_post_and_the_permission_to_view_the_rows(client: Client) -> None:
    client_with(client, Permission.objects.filter(codename="view_backlogsample"))
    assert client.get(SEARCH, {"q": "1"}).status_code == 405
    event = make_event(payload={"n": "text"}, key="order-7")
    delivery = make_delivery(event, "failed")
    for term in (str(delivery.pk), str(event.pk), "order-7"):
        assert hits(client, term) == []
    for place in ("payloads", "errors"):
        assert hits(client, "ValueError", place=place) == []


def test_an_empty_search_finds_nothing(admin_client: Client) -> None:
    make_delivery(state="failed")
    for place in ("ids", "payloads", "errors", "nonsense"):
        assert hits(admin_client, " ", place=place) == []


# ---------------------------------------------------------------- the panel


def test_the_home_page_of_the_admin_shows_the_verdict(admin_client: Client) -> None:
    text = page(admin_client, "/admin/")
    assert "no relay is alive" in text
    assert OVERVIEW in text


def test_the_panel_is_hidden_without_the_permission(client: Client) -> None:
    client_with(client, Permission.objects.filter(codename="view_delivery"))
    assert "outbox-panel" not in page(client, "/admin/")


def test_a_site_without_the_overview_has_no_panel(
    admin_client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = AdminSite(name="other")
    site.index_template = panel.TEMPLATE
    urls = ModuleType("other_urls")
    urls.urlpatterns = [path("other/", site.urls)]
    monkeypatch.setitem(sys.modules, "other_urls", urls)
    settings.ROOT_URLCONF = "other_urls"
    assert "outbox-panel" not in page(admin_client, "/other/")


def test_the_home_page_opens_while_the_outbox_cannot_be_examined(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: str) -> None:
        raise DatabaseError("no such table: outbox_delivery")

    monkeypatch.setattr(panel, "get_health", fail)
    assert "no such table: outbox_delivery" in page(admin_client, "/admin/")


# ---------------------------------------------------------------- the doctor


def test_the_doctor_shows_each_finding_with_its_remedy(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Finding.of("fsync-off", "fsync is <off>")
    monkeypatch.setattr("outbox.admin.overview.examine", lambda _database: [found])
    assert f'href="{DOCTOR}"' in page(admin_client, OVERVIEW)
    text = page(admin_client, DOCTOR)
    assert "fsync is &lt;off&gt;" in text
    assert "fsync-off" in text
    assert found.remedy in text
    monkeypatch.setattr("outbox.admin.overview.examine", lambda _database: [])
    assert "No finding" in page(admin_client, DOCTOR)


def test_the_doctor_examines_the_running_system(admin_client: Client) -> None:
    # The test project has no worker.
    assert "queue-without-worker" in page(admin_client, DOCTOR)


def test_the_doctor_needs_the_permission_of_the_overview(client: Client) -> None:
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    assert client.get(DOCTOR).status_code == 403
