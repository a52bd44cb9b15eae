"""The admin's pages of operator jobs: preview, permission, request, progress and stop."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from outbox.models import Delivery, OperatorJob
from outbox.operations import operator_jobs
from outbox.operations.operator_jobs import run_chunk
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db

CONFIRM = "/admin/outbox/operatorjob/request/"


@pytest.fixture
def operator(client: Client) -> User:
    """Log in a user who may view deliveries and nothing else."""
    user = User.objects.create_user("ann", is_staff=True)
    allow(user, "view_delivery", "view_operatorjob")
    client.force_login(user)
    return user


def allow(user: User, *codenames: str) -> None:
    user.user_permissions.add(*Permission.objects.filter(codename__in=codenames))


def make_failed(count: int, **fields: Any) -> None:
    for _ in range(count):
        make_delivery(state="failed", **fields)


def text_of(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_the_address_of_the_page_is_stable() -> None:
    assert reverse("admin:outbox_job_confirm") == CONFIRM


def test_the_page_shows_the_number_and_a_sample_and_changes_nothing(admin_client: Client) -> None:
    make_failed(12, handler="shop.mail", event=make_event("shop.paid"))
    make_failed(1, handler="shop.other")
    text = text_of(admin_client.get(CONFIRM, {"verb": "retry", "handler": "shop.mail"}))
    assert "12 deliveries match now." in text
    assert text.count("<td>shop.paid</td>") == 10
    assert "shop.other" not in text
    assert not OperatorJob.objects.exists()


def test_a_count_that_is_not_exact_has_a_plus_sign(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_jobs, "PREVIEW_LIMIT", 3)
    make_failed(5)
    assert "3+ deliveries match now." in text_of(admin_client.get(CONFIRM, {"verb": "retry"}))


def test_a_post_requests_the_job_and_logs_it(admin_client: Client, admin_user: User) -> None:
    make_failed(2, handler="shop.mail")
    answer = admin_client.post(CONFIRM, {"verb": "retry", "handler": "shop.mail"})
    job = OperatorJob.objects.get()
    assert answer["Location"] == f"/admin/outbox/operatorjob/{job.pk}/change/"
    assert (job.verb, job.handler, job.requested_by, job.state) == (
        "retry",
        "shop.mail",
        admin_user.username,
        "waiting",
    )
    assert LogEntry.objects.get().get_change_message() == "Requested, shop.mail"
    run_chunk("default")
    page = text_of(admin_client.get(answer["Location"]))
    assert ">done<" in page
    assert Delivery.objects.pending().count() == 2


def test_a_discard_needs_a_reason(admin_client: Client) -> None:
    make_failed(1)
    answer = admin_client.post(CONFIRM, {"verb": "discard"})
    assert "This field is required." in text_of(answer)
    assert not OperatorJob.objects.exists()
    admin_client.post(CONFIRM, {"verb": "discard", "reason": "obsolete"})
    assert OperatorJob.objects.get().reason == "obsolete"


@pytest.mark.parametrize("verb", ["retry", "resend", "discard"])
def test_each_verb_has_a_permission_of_its_own(client: Client, operator: User, verb: str) -> None:
    others = [f"{other}_deliveries" for other in ("retry", "resend", "discard") if other != verb]
    allow(operator, "change_delivery", *others)
    assert client.get(CONFIRM, {"verb": verb}).status_code == 403
    assert client.post(CONFIRM, {"verb": verb, "reason": "x"}).status_code == 403
    allow(operator, f"{verb}_deliveries")
    assert client.get(CONFIRM, {"verb": verb}).status_code == 200
    assert client.post(CONFIRM, {"verb": verb, "reason": "x"}).status_code == 302


def test_a_request_needs_the_token_against_forgery(admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(CONFIRM, {"verb": "retry"}).status_code == 403


@pytest.mark.parametrize(
    "parameters",
    [{}, {"verb": "drop"}, {"verb": "retry", "handler": "x" * 256}, {"verb": "retry", "topic": "\0"}],
)
def test_invalid_filters_are_answered_with_400(admin_client: Client, parameters: dict[str, str]) -> None:
    assert admin_client.get(CONFIRM, parameters).status_code == 400
    assert admin_client.post(CONFIRM, parameters).status_code == 400


def test_a_job_is_stopped_by_its_button(admin_client: Client) -> None:
    job = OperatorJob.objects.request("retry", requested_by="ann")
    page = f"/admin/outbox/operatorjob/{job.pk}/change/"
    assert 'value="Stop"' in text_of(admin_client.get(page))
    assert admin_client.get(f"/admin/outbox/operatorjob/{job.pk}/stop/").status_code == 405
    assert admin_client.post(f"/admin/outbox/operatorjob/{job.pk}/stop/")["Location"] == page
    job.refresh_from_db()
    assert job.state == "stopped"
    assert 'value="Stop"' not in text_of(admin_client.get(page))
    assert LogEntry.objects.get().get_change_message() == "Stopped."


def test_a_job_is_stopped_only_with_the_permission_of_its_verb(client: Client, operator: User) -> None:
    job = OperatorJob.objects.request("discard", requested_by="bob")
    allow(operator, "retry_deliveries")
    assert client.post(f"/admin/outbox/operatorjob/{job.pk}/stop/").status_code == 403
    assert client.post("/admin/outbox/operatorjob/999999/stop/").status_code == 403
    job.refresh_from_db()
    assert job.state == "waiting"


# ---------------------------------------------------------------- links to the page


def links(client: Client, **filters: str) -> list[str]:
    context = client.get("/admin/outbox/delivery/", filters).context
    return [url for _label, url in context["job_links"]]


def test_the_list_links_jobs_on_all_that_match(admin_client: Client) -> None:
    make_failed(1, handler="record")
    assert links(admin_client, state="failed", handler="record") == [
        f"{CONFIRM}?verb=retry&handler=record",
        f"{CONFIRM}?verb=discard&handler=record",
    ]
    assert len(links(admin_client, state="failed", before="")) == 2
    assert links(admin_client, state="dispatched") == [f"{CONFIRM}?verb=resend"]
    assert links(admin_client) == []


def test_a_list_with_another_filter_links_no_job(admin_client: Client) -> None:
    assert links(admin_client, state="failed", published="hour") == []
    assert links(admin_client, state="failed", q="order-7") == []


def test_the_list_links_no_job_without_the_permission(client: Client, operator: User) -> None:
    assert links(client, state="failed") == []


def test_the_overview_retries_all_deliveries_of_a_failing_handler(admin_client: Client) -> None:
    make_failed(3, handler="record")
    page = text_of(admin_client.get("/admin/outbox/backlogsample/"))
    assert "Retry all 3…" in page
    assert f"{CONFIRM}?verb=retry&amp;handler=record" in page


# ---------------------------------------------------------------- replay

REPLAY = "/admin/outbox/operatorjob/replay/"
EVENTS = "/admin/outbox/event/"


def filters(**changed: Any) -> dict[str, str]:
    return {"topic": "test.*", "since": "2020-01-31T09:00", "handler": "record", **changed}


def test_the_form_of_a_replay_offers_every_handler(admin_client: Client) -> None:
    text = text_of(admin_client.get(REPLAY))
    assert '<option value="record">record</option>' in text
    assert "<h2>Preview</h2>" not in text
    assert f'href="{REPLAY}"' in text_of(admin_client.get(EVENTS))


def test_a_replay_is_shown_before_it_is_requested(admin_client: Client) -> None:
    for _ in range(12):
        make_event("test.recorded", key="<key>")
    text = text_of(admin_client.get(REPLAY, filters()))
    assert "12 events match, and 12 deliveries will be written." in text
    assert text.count("&lt;key&gt;</td>") == 10
    assert not OperatorJob.objects.exists()


def test_a_replay_is_requested_and_writes_new_deliveries(admin_client: Client) -> None:
    for key in ("a", "b", "a"):
        make_event("test.recorded", key=key)
    answer = admin_client.post(REPLAY, filters(key="a", rate="50"))
    job = OperatorJob.objects.get()
    assert answer["Location"] == f"/admin/outbox/operatorjob/{job.pk}/change/"
    assert (job.verb, job.topic, job.key, job.handler, job.rate) == ("replay", "test.*", "a", "record", 50)
    assert job.until is not None
    while run_chunk("default").has_more:
        continue
    assert Delivery.objects.filter(handler="record").count() == 2
    page = text_of(admin_client.get(answer["Location"]))
    assert "50 per second" in page
    assert "Requested, test.*, record" in LogEntry.objects.get().change_message


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"topic": "no topic"}, "errorlist"),
        ({"since": "yesterday"}, "Enter a valid date/time."),
        ({"handler": "shop.absent"}, "Select a valid choice."),
        ({"rate": "0"}, "greater than or equal to 1"),
    ],
)
def test_wrong_filters_of_a_replay_are_shown(
    admin_client: Client, changed: dict[str, str], error: str
) -> None:
    assert error in text_of(admin_client.post(REPLAY, filters(**changed)))
    assert not OperatorJob.objects.exists()


def test_a_replay_needs_its_permission(client: Client, operator: User) -> None:
    allow(operator, "view_event", "retry_deliveries", "discard_deliveries", "resend_deliveries")
    assert client.get(REPLAY).status_code == 403
    assert client.post(REPLAY, filters()).status_code == 403
    assert REPLAY not in text_of(client.get(EVENTS))
    allow(operator, "replay_deliveries")
    operator = User.objects.get(pk=operator.pk)
    client.force_login(operator)
    assert client.get(REPLAY).status_code == 200
    assert client.post(REPLAY, filters()).status_code == 302


def test_a_replay_needs_the_token_of_its_form(admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(REPLAY, filters()).status_code == 403


def test_the_page_of_other_jobs_leads_to_the_form_of_a_replay(admin_client: Client) -> None:
    assert admin_client.get(CONFIRM, {"verb": "replay"})["Location"] == REPLAY
