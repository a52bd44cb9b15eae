"""The admin: events are cancelled, and blocked ordering keys are found and unblocked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

import outbox
from outbox.models import Delivery
from outbox.registry import registry
from tests.support.admin_pages import DELIVERIES, EVENTS, act, listed, page, state
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db


@pytest.fixture
def ordered_handlers() -> Iterator[None]:
    """Declare two ordered handlers; one skips failed deliveries."""
    outbox.handler("ledger.*", name="ledger", ordered=True)(lambda event: None)
    outbox.handler("skipping.*", name="skipping", ordered=True, on_failure="skip")(lambda event: None)
    yield
    registry.remove("ledger")
    registry.remove("skipping")


def deliveries_of_key(handler: str, key: str, *states: str) -> list[Delivery]:
    """Write deliveries with one ordering key; the pending ones are blocked."""
    return [
        make_delivery(
            make_event("ledger.entry", key=key),
            state,
            handler=handler,
            key=key,
            waits_for="key" if state == "pending" else "",
        )
        for state in states
    ]


def shown(client: Client, delivery: Delivery) -> str:
    return page(client, f"{DELIVERIES}{delivery.pk}/change/")


# ---------------------------------------------------------------- cancel


def cancel(client: Client, *events: Any, **fields: str) -> Any:
    data = {"action": "cancel_selected", "_selected_action": [one.pk for one in events], "index": 0, **fields}
    return client.post(EVENTS, data, follow=True)


def test_cancelling_asks_for_a_reason_and_records_it(admin_client: Client) -> None:
    event, other = make_event(), make_event()
    pending, dispatched, done = make_delivery(event), make_delivery(event, "dispatched"), make_delivery(other)
    text = cancel(admin_client, event).content.decode()
    assert "One pending delivery will be discarded" in text
    assert str(event.pk) in text
    assert state(pending) == "pending"
    text = cancel(admin_client, event, confirmed="yes", reason="withdrawn").content.decode()
    assert "1 delivery was discarded." in text
    assert (state(pending), state(dispatched), state(done)) == ("discarded", "dispatched", "pending")
    assert pending.error == "Cancelled by admin: withdrawn"
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.change_message) == (str(event.pk), "Cancelled by admin: withdrawn")


def test_an_event_is_cancelled_from_its_own_page(admin_client: Client) -> None:
    pending = make_delivery()
    url = f"{EVENTS}{pending.event_id}/"
    assert f"{url}cancel/" in page(admin_client, f"{url}change/")
    page(admin_client, f"{url}cancel/")
    response = admin_client.post(f"{url}cancel/", {"confirmed": "yes", "reason": "withdrawn"})
    assert response.headers["Location"] == f"{url}change/"
    assert state(pending) == "discarded"
    assert f"{url}cancel/" not in page(admin_client, f"{url}change/")


@pytest.mark.parametrize("object_id", ["nonsense", "00000000-0000-0000-0000-000000000000"])
def test_an_event_without_pending_deliveries_cannot_be_cancelled(
    admin_client: Client, object_id: str
) -> None:
    response = admin_client.get(f"{EVENTS}{object_id}/cancel/", follow=True)
    assert "there is nothing to cancel" in response.content.decode()
    make_delivery(make_event(), "succeeded")
    assert "nothing to cancel" in cancel(admin_client, make_delivery(state="failed").event).content.decode()


def test_cancelling_needs_the_change_permission_on_deliveries(client: Client) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    pending = make_delivery()
    url = f"{EVENTS}{pending.event_id}/"
    assert "cancel" not in page(client, f"{url}change/").lower()
    assert client.post(f"{url}cancel/", {"confirmed": "yes", "reason": "x"}).status_code == 403
    cancel(client, pending.event, confirmed="yes", reason="x")
    assert state(pending) == "pending"
    user.user_permissions.add(Permission.objects.get(codename="change_delivery"))
    cancel(client, pending.event, confirmed="yes", reason="x")
    assert state(pending) == "discarded"


# ---------------------------------------------------------------- blocked keys


def test_blocked_keys_are_listed_by_their_blocking_delivery(
    ordered_handlers: None, admin_client: Client
) -> None:
    head, *_rest = deliveries_of_key("ledger", "a", "failed", "failed", "pending")
    deliveries_of_key("ledger", "b", "failed")
    deliveries_of_key("ledger", "c", "dispatched", "failed", "pending")
    deliveries_of_key("skipping", "d", "failed", "pending")
    make_delivery(state="failed")
    assert listed(admin_client, DELIVERIES, state="blocking") == [head.pk]
    assert listed(admin_client, DELIVERIES, state="blocking", handler="ledger") == [head.pk]
    assert listed(admin_client, DELIVERIES, state="blocking", q="a") == [head.pk]
    assert listed(admin_client, DELIVERIES, state="blocking", q="b") == []
    assert listed(admin_client, DELIVERIES, state="blocking", handler="skipping") == []


def test_a_delivery_page_shows_blocked_deliveries_and_the_blocking_one(
    ordered_handlers: None, admin_client: Client
) -> None:
    head, second, _third = deliveries_of_key("ledger", "a", "failed", "pending", "pending")
    assert "blocks 2 deliveries behind it" in shown(admin_client, head)
    assert f"blocked by delivery #{head.pk}, which failed" in shown(admin_client, second)
    skipped, behind = deliveries_of_key("skipping", "a", "failed", "pending")
    for delivery in (
        skipped,
        behind,
        *deliveries_of_key("ledger", "b", "failed"),
        make_delivery(state="failed"),
    ):
        text = shown(admin_client, delivery)
        assert "behind it" not in text
        assert "blocked by" not in text


def test_blocked_deliveries_are_counted_up_to_a_limit(
    ordered_handlers: None, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("outbox.operations.blocked_keys", "outbox.admin.deliveries"):
        monkeypatch.setattr(f"{module}.WAITING_LIMIT", 2)
    head, *_rest = deliveries_of_key("ledger", "a", "failed", "pending", "pending", "pending")
    assert "blocks 2+ deliveries behind it" in shown(admin_client, head)


@pytest.mark.django_db(transaction=True)
def test_discarding_unblocks_a_key_behind_a_skipped_failure(
    ordered_handlers: None, admin_client: Client
) -> None:
    # The handler skips the failed delivery; discarding removes the second one.
    failed, second, third = deliveries_of_key("skipping", "a", "failed", "pending", "pending")
    act(admin_client, "discard_selected", second, confirmed="yes", reason="obsolete")
    third.refresh_from_db()
    assert (state(failed), state(second), third.waits_for) == ("failed", "discarded", "")


@pytest.mark.django_db(transaction=True)
def test_cancelling_an_event_unblocks_its_key(ordered_handlers: None) -> None:
    _failed, second, third = deliveries_of_key("skipping", "a", "failed", "pending", "pending")
    assert second.event.cancel() == 1
    third.refresh_from_db()
    assert third.waits_for == ""


# ---------------------------------------------------------------- the error of an earlier attempt


def test_the_error_of_an_earlier_attempt_is_labelled_last_error(admin_client: Client) -> None:
    done = make_delivery(state="succeeded", error="ValueError: not the first time")
    failed = make_delivery(state="failed", error="ValueError: never")
    assert "Last error:" in shown(admin_client, done)
    assert "Last error:" not in shown(admin_client, failed)
    text = page(admin_client, DELIVERIES)
    assert '<span class="quiet">last error:</span> ValueError: not the first time' in text
    assert "last error:</span> ValueError: never" not in text
