"""The admin: handlers are paused and resumed, and both need a permission."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from outbox.models import Delivery, HandlerStats, PausedHandler, Tally
from tests.support.admin_pages import STATS, page, state
from tests.support.factories import make_delivery

pytestmark = pytest.mark.django_db

PAUSED = "/admin/outbox/pausedhandler/"


@pytest.fixture
def viewer(client: Client) -> Client:
    """Return the client of a user with the view permissions only."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    return client


def pause(client: Client, **fields: str) -> Any:
    return client.post(f"{PAUSED}pause/", {"handler": "record", "reason": "no mail server", **fields})


def entries() -> list[tuple[str | None, str]]:
    return list(LogEntry.objects.order_by("pk").values_list("object_id", "change_message"))


def test_a_handler_is_paused_with_a_reason_and_an_entry_in_the_log(admin_client: Client) -> None:
    assert f"{PAUSED}pause/" in page(admin_client, PAUSED)
    assert '<option value="record">' in page(admin_client, f"{PAUSED}pause/")
    pause(admin_client)
    paused = PausedHandler.objects.get()
    assert (paused.handler, paused.reason) == ("record", "no mail server")
    assert entries() == [("record", "Paused: no mail server")]


@pytest.mark.parametrize("fields", [{"handler": "nobody"}, {"reason": " "}])
def test_pausing_needs_a_registered_handler_and_a_reason(
    admin_client: Client, fields: dict[str, str]
) -> None:
    assert pause(admin_client, **fields).status_code == 200
    assert not PausedHandler.objects.exists()


def test_paused_handlers_are_listed_with_reason_and_waiting_deliveries(admin_client: Client) -> None:
    PausedHandler.objects.pause("record", "no mail server")
    for waits_for in ("resume", "resume", ""):
        make_delivery(handler="record", waits_for=waits_for)
    for url in (PAUSED, f"{PAUSED}record/change/"):
        text = page(admin_client, url)
        assert "no mail server" in text
        assert "Resume" in text
    assert '<td class="field-waiting">2</td>' in page(admin_client, PAUSED)
    assert '<option value="record">' not in page(admin_client, f"{PAUSED}pause/")


def test_resuming_makes_waiting_deliveries_due(admin_client: Client) -> None:
    PausedHandler.objects.pause("record")
    delivery = make_delivery(handler="record", waits_for="resume")
    response = admin_client.post(f"{PAUSED}resume/", {"handler": "record"}, follow=True)
    assert "1 handler was resumed." in response.content.decode()
    assert not PausedHandler.objects.exists()
    delivery.refresh_from_db()
    assert (state(delivery), delivery.waits_for) == ("pending", "")
    assert entries() == [("record", "Resumed.")]


def test_one_request_resumes_a_bounded_number_of_deliveries(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.models.pause.RESUME_CHUNK", 4)
    for name in ("record", "flaky"):
        PausedHandler.objects.pause(name)
        for _ in range(3):
            make_delivery(handler=name, waits_for="resume")
    data = {"action": "resume_selected", "_selected_action": ["record", "flaky"], "index": 0}
    response = admin_client.post(PAUSED, data, follow=True)
    assert "Relays make the other waiting deliveries due." in response.content.decode()
    assert not PausedHandler.objects.exists()
    assert Delivery.objects.filter(waits_for="").count() == 4


def test_several_handlers_are_resumed_from_the_list(admin_client: Client) -> None:
    for name in ("record", "gone.from.the/code"):
        PausedHandler.objects.pause(name)
    data = {"action": "resume_selected", "_selected_action": ["record", "gone.from.the/code"], "index": 0}
    admin_client.post(PAUSED, data)
    assert not PausedHandler.objects.exists()
    assert len(entries()) == 2


def test_a_handler_is_paused_and_resumed_from_the_statistics(admin_client: Client) -> None:
    tally = Tally(dispatched=1)
    tally.count("succeeded", 0.1)
    HandlerStats.objects.add({"record": tally, "only.monitored": tally})
    for url in (STATS, f"{STATS}record/"):
        assert f"{PAUSED}pause/?handler=record" in page(admin_client, url)
    assert "Pause…" not in page(admin_client, f"{STATS}only.monitored/")
    response = admin_client.post(
        f"{PAUSED}pause/?handler=record", {"handler": "record", "reason": "no mail server"}
    )
    assert response.headers["Location"] == f"{STATS}record/"
    for url in (STATS, f"{STATS}record/"):
        text = page(admin_client, url)
        assert "no mail server" in text
        assert f'action="{PAUSED}resume/"' in text
    response = admin_client.post(f"{PAUSED}resume/", {"handler": "record", "back_to": "record"})
    assert response.headers["Location"] == f"{STATS}record/"


def test_a_handler_without_statistics_can_be_paused(admin_client: Client) -> None:
    assert "Pause…" in page(admin_client, f"{STATS}record/")


def test_the_view_permission_allows_no_pause(viewer: Client) -> None:
    PausedHandler.objects.pause("flaky")
    for url in (PAUSED, f"{PAUSED}flaky/change/", STATS, f"{STATS}record/", f"{STATS}flaky/"):
        text = page(viewer, url)
        assert "Pause…" not in text
        assert "Resume" not in text
    assert pause(viewer).status_code == 403
    assert viewer.post(f"{PAUSED}resume/", {"handler": "flaky"}).status_code == 403
    assert list(PausedHandler.objects.names()) == ["flaky"]


def test_the_change_permission_allows_pause_and_resume(viewer: Client) -> None:
    change = Permission.objects.get(codename="change_pausedhandler")
    User.objects.get(username="viewer").user_permissions.add(change)
    pause(viewer)
    assert viewer.get(f"{PAUSED}resume/").status_code == 405
    viewer.post(f"{PAUSED}resume/", {"handler": "record"})
    assert [message for _name, message in entries()] == ["Paused: no mail server", "Resumed."]
    assert not Delivery.objects.exists()
