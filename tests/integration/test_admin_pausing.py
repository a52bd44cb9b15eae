"""The admin: handlers are paused and resumed, by those who may."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from outbox.models import Delivery, HandlerStats, PausedHandler, Tally
from tests.admin_pages import STATS, page, state
from tests.factories import make_delivery

pytestmark = pytest.mark.django_db

PAUSED = "/admin/outbox/pausedhandler/"


@pytest.fixture
def viewer(client: Client) -> Client:
    """Return the client of somebody who may view and no more."""
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


def test_what_is_paused_is_listed_with_reason_and_what_waits(admin_client: Client) -> None:
    PausedHandler.objects.pause("record", "no mail server")
    for held in ("pause", "pause", ""):
        make_delivery(handler="record", held=held)
    for url in (PAUSED, f"{PAUSED}record/change/"):
        text = page(admin_client, url)
        assert "no mail server" in text
        assert "Resume" in text
    assert '<td class="field-waiting">2</td>' in page(admin_client, PAUSED)
    assert '<option value="record">' not in page(admin_client, f"{PAUSED}pause/")


def test_resuming_lets_the_deliveries_go(admin_client: Client) -> None:
    PausedHandler.objects.pause("record")
    delivery = make_delivery(handler="record", held="pause")
    response = admin_client.post(f"{PAUSED}resume/", {"handler": "record"}, follow=True)
    assert "1 handler goes on." in response.content.decode()
    assert not PausedHandler.objects.exists()
    delivery.refresh_from_db()
    assert (state(delivery), delivery.held) == ("pending", "")
    assert entries() == [("record", "Resumed.")]


def test_several_are_resumed_from_the_list(admin_client: Client) -> None:
    for name in ("record", "gone.from.the/code"):
        PausedHandler.objects.pause(name)
    data = {"action": "resume_selected", "_selected_action": ["record", "gone.from.the/code"], "index": 0}
    admin_client.post(PAUSED, data)
    assert not PausedHandler.objects.exists()
    assert len(entries()) == 2


def test_the_pages_of_statistics_pause_and_resume(admin_client: Client) -> None:
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


def test_a_handler_that_never_ran_has_the_button_too(admin_client: Client) -> None:
    assert "Pause…" in page(admin_client, f"{STATS}record/")


def test_the_view_permission_pauses_nothing(viewer: Client) -> None:
    PausedHandler.objects.pause("flaky")
    for url in (PAUSED, f"{PAUSED}flaky/change/", STATS, f"{STATS}record/", f"{STATS}flaky/"):
        text = page(viewer, url)
        assert "Pause…" not in text
        assert "Resume" not in text
    assert pause(viewer).status_code == 403
    assert viewer.post(f"{PAUSED}resume/", {"handler": "flaky"}).status_code == 403
    assert list(PausedHandler.objects.names()) == ["flaky"]


def test_the_change_permission_pauses(viewer: Client) -> None:
    change = Permission.objects.get(codename="change_pausedhandler")
    User.objects.get(username="viewer").user_permissions.add(change)
    pause(viewer)
    assert viewer.get(f"{PAUSED}resume/").status_code == 405
    viewer.post(f"{PAUSED}resume/", {"handler": "record"})
    assert [message for _name, message in entries()] == ["Paused: no mail server", "Resumed."]
    assert not Delivery.objects.exists()
