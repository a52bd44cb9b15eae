"""The actions of operators in the admin, and their permissions."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from outbox.admin.reason_pages import ReasonForm
from tests.support.admin_pages import DELIVERIES, EVENTS, PROCESSES, STATS, act, page, state
from tests.support.factories import make_delivery, make_event, make_relay

pytestmark = pytest.mark.django_db


@pytest.fixture
def viewer(client: Client) -> Client:
    """Return the client of a user with the view permissions only."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    return client


# ---------------------------------------------------------------- retry and discard


def test_an_operator_retries_selected_failed_deliveries(admin_client: Client, admin_user: User) -> None:
    failed, done = make_delivery(state="failed"), make_delivery(state="succeeded")
    text = act(admin_client, "retry_selected", failed, done).content.decode()
    assert "1 delivery will be resent." in text
    assert "1 selected" in text
    assert (state(failed), state(done)) == ("pending", "succeeded")
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (admin_user, str(failed.pk), "Retried.")


def test_discarding_asks_for_a_reason_and_records_it(admin_client: Client) -> None:
    failed = make_delivery(state="failed", error="Traceback\nValueError: no")
    pending, done = make_delivery(), make_delivery(state="succeeded")
    text = act(admin_client, "discard_selected", failed, pending, done).content.decode()
    assert "These 2 deliveries" in text
    assert "1 other is neither" in text
    assert state(failed) == "failed"
    act(admin_client, "discard_selected", failed, pending, done, confirmed="yes", reason="sent twice")
    assert (state(failed), state(pending), state(done)) == ("discarded", "discarded", "succeeded")
    assert failed.error == "Discarded by admin: sent twice\n\nTraceback\nValueError: no"
    assert pending.error == "Discarded by admin: sent twice"
    assert LogEntry.objects.count() == 2


def test_discarding_without_a_reason_changes_nothing(admin_client: Client) -> None:
    failed = make_delivery(state="failed")
    response = act(admin_client, "discard_selected", failed, confirmed="yes", reason=" ")
    assert "This field is required" in response.content.decode()
    assert state(failed) == "failed"
    assert not ReasonForm({"reason": "x" * 501}).is_valid()


def test_a_failed_delivery_is_retried_from_its_own_page(admin_client: Client) -> None:
    failed = make_delivery(state="failed")
    url = f"{DELIVERIES}{failed.pk}/"
    assert f"{url}retry/" in page(admin_client, f"{url}change/")
    response = admin_client.post(f"{url}retry/", follow=True)
    assert response.redirect_chain[-1][0] == f"{url}change/"
    assert state(failed) == "pending"
    assert 'value="Retry"' not in response.content.decode()


def test_a_delivery_is_discarded_from_its_own_page(admin_client: Client) -> None:
    failed = make_delivery(state="failed")
    url = f"{DELIVERIES}{failed.pk}/"
    assert "This delivery will be discarded" in page(admin_client, f"{url}discard/")
    admin_client.post(f"{url}discard/", {"confirmed": "yes", "reason": "obsolete"})
    assert state(failed) == "discarded"
    assert LogEntry.objects.get().change_message == "Discarded by admin: obsolete"


def test_a_retry_needs_post_and_a_token(admin_user: User) -> None:
    failed = make_delivery(state="failed")
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.get(f"{DELIVERIES}{failed.pk}/retry/").status_code == 405
    assert client.post(f"{DELIVERIES}{failed.pk}/retry/").status_code == 403
    assert state(failed) == "failed"


def test_the_view_permission_shows_everything_and_changes_nothing(viewer: Client) -> None:
    failed = make_delivery(state="failed")
    for url in (EVENTS, f"{EVENTS}{failed.event_id}/change/", DELIVERIES, STATS, f"{STATS}mail/", PROCESSES):
        page(viewer, url)
    assert "retry" not in page(viewer, f"{DELIVERIES}{failed.pk}/change/")
    act(viewer, "retry_selected", failed)
    assert viewer.post(f"{DELIVERIES}{failed.pk}/retry/").status_code == 403
    assert (
        viewer.post(f"{DELIVERIES}{failed.pk}/discard/", {"confirmed": "1", "reason": "x"}).status_code == 403
    )
    assert state(failed) == "failed"


def test_the_change_permission_allows_a_retry(viewer: Client) -> None:
    failed = make_delivery(state="failed")
    User.objects.get(username="viewer").user_permissions.add(
        Permission.objects.get(codename="change_delivery")
    )
    act(viewer, "retry_selected", failed)
    assert state(failed) == "pending"


def test_a_user_without_permissions_is_refused(client: Client) -> None:
    client.force_login(User.objects.create_user("staff", is_staff=True))
    for url in (EVENTS, DELIVERIES, STATS, f"{STATS}mail/", PROCESSES):
        assert client.get(url).status_code == 403


@pytest.mark.parametrize("verb", ["add/", "{pk}/delete/"])
@pytest.mark.parametrize("url", [EVENTS, DELIVERIES, PROCESSES])
def test_nothing_can_be_added_or_deleted(admin_client: Client, url: str, verb: str) -> None:
    pk = {EVENTS: make_event().pk, DELIVERIES: make_delivery().pk, PROCESSES: make_relay().pk}[url]
    assert admin_client.post(url + verb.format(pk=pk), {"post": "yes"}).status_code == 403


def test_a_posted_change_is_refused(admin_client: Client) -> None:
    event = make_event(payload={"a": 1})
    assert (
        admin_client.post(f"{EVENTS}{event.pk}/change/", {"payload": "{}", "topic": "x"}).status_code == 403
    )
    event.refresh_from_db()
    assert event.payload == {"a": 1}
