"""The lists and pages of the admin."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from outbox.admin import pagination
from outbox.models import Delivery, Event, HandlerStats, Tally
from tests.support.admin_pages import DELIVERIES, EVENTS, PROCESSES, STATS, listed, page
from tests.support.factories import make_delivery, make_event, make_relay

pytestmark = pytest.mark.django_db


# ---------------------------------------------------------------- events


def test_events_are_listed_newest_first_with_the_states_of_their_deliveries(admin_client: Client) -> None:
    older, newer = make_event("shop.order_placed"), make_event("shop.order_paid", key="order-7")
    for state in ("succeeded", "succeeded", "failed"):
        make_delivery(newer, state)
    text = page(admin_client, EVENTS)
    assert listed(admin_client, EVENTS) == [newer.pk, older.pk]
    assert "2 succeeded" in text
    assert "1 failed" in text


def test_an_event_page_shows_content_and_deliveries_and_no_edit_form(admin_client: Client) -> None:
    event = make_event(payload={"note": "<b>né</b>"}, headers={"context": {"tenant": "acme"}})
    delivery = make_delivery(event, "failed", handler="shop.mail")
    text = page(admin_client, f"{EVENTS}{event.pk}/change/")
    assert "&lt;b&gt;né&lt;/b&gt;" in text
    assert "acme" in text
    assert f"{DELIVERIES}{delivery.pk}/change/" in text
    assert 'name="_save"' not in text
    assert 'name="payload"' not in text


def test_an_event_links_its_cause_and_the_root_of_the_chain(admin_client: Client) -> None:
    root, cause = make_event(), make_event()
    headers = {"causation_id": str(cause.pk), "correlation_id": str(root.pk)}
    text = page(admin_client, f"{EVENTS}{make_event(headers=headers).pk}/change/")
    assert f"{EVENTS}{cause.pk}/change/" in text
    assert f"{EVENTS}{root.pk}/change/" in text


@pytest.mark.parametrize("url", [EVENTS, DELIVERIES, PROCESSES])
@pytest.mark.parametrize("object_id", ["nonsense", "0", "00000000-0000-0000-0000-000000000000"])
def test_a_missing_object_redirects_with_a_message(admin_client: Client, url: str, object_id: str) -> None:
    response = admin_client.get(f"{url}{object_id}/change/", follow=True)
    assert "t exist. Perhaps it was deleted?" in response.content.decode()


def test_an_event_with_headers_that_are_a_list_is_shown(admin_client: Client) -> None:
    page(admin_client, f"{EVENTS}{make_event(headers=[1]).pk}/change/")


def test_events_are_filtered_by_topic_and_time(admin_client: Client) -> None:
    old = make_event("shop.order_paid", created_at=timezone.now() - timedelta(hours=3))
    new, other = make_event("shop.order_paid"), make_event("shop.order_sent")
    assert listed(admin_client, EVENTS, topic="shop.order_paid") == [new.pk, old.pk]
    assert listed(admin_client, EVENTS, published="hour") == [other.pk, new.pk]
    assert listed(admin_client, EVENTS, published="day", topic="shop.order_paid") == [new.pk, old.pk]


def test_events_are_searched_by_id_key_topic_and_pattern(admin_client: Client) -> None:
    paid = make_event("shop.order_paid", key="order-7")
    sent = make_event("shop.order_sent", key="order-70")
    click = make_event("web.click")
    assert listed(admin_client, EVENTS, q=str(paid.pk)) == [paid.pk]
    assert listed(admin_client, EVENTS, q=f" {paid.pk.hex} ") == [paid.pk]
    assert listed(admin_client, EVENTS, q="order-7") == [paid.pk]
    assert listed(admin_client, EVENTS, q="order-") == [sent.pk, paid.pk]
    assert listed(admin_client, EVENTS, q="order-70*") == [sent.pk]
    assert listed(admin_client, EVENTS, q="web.click") == [click.pk]
    assert listed(admin_client, EVENTS, q="shop.*") == [sent.pk, paid.pk]
    assert listed(admin_client, EVENTS, q="nothing like it") == []


# ---------------------------------------------------------------- deliveries


def test_the_list_of_deliveries_shows_the_event_and_one_line_of_the_error(admin_client: Client) -> None:
    event = make_event("shop.order_paid")
    make_delivery(event, "failed", error="Traceback …\n  File …\nValueError: no such mailbox")
    make_delivery(event, "discarded", error="Discarded by root: spam\n\nTraceback …\nKeyError: 1")
    text = page(admin_client, DELIVERIES)
    assert "ValueError: no such mailbox" in text
    assert "Discarded by root: spam" in text
    assert "KeyError" not in text
    assert f"{EVENTS}{event.pk}/change/" in text


def test_a_delivery_shows_its_traceback_and_links_its_event(admin_client: Client) -> None:
    delivery = make_delivery(
        make_event(payload={"order_id": 4711}), "failed", error="Traceback\nValueError: <no>"
    )
    text = page(admin_client, f"{DELIVERIES}{delivery.pk}/change/")
    assert "ValueError: &lt;no&gt;" in text
    assert '<span class="outbox-badge outbox-failed">failed</span>' in text
    assert f"{EVENTS}{delivery.event_id}/change/" in text
    assert "4711" in text


def test_a_delivery_shows_redeliveries_resends_refusals_and_crashes(
    admin_client: Client,
) -> None:
    delivery = make_delivery(state="failed", redeliveries=2, resends=1, refusals=1, crashes=3)
    text = page(admin_client, f"{DELIVERIES}{delivery.pk}/change/")
    details = ("2 redelivered", "1 resent", "1 refused by the broker", "3 workers crashed")
    assert "3" + "".join(f"<br><small>{detail}</small>" for detail in details) in text


def test_a_retried_delivery_is_shown_as_resent_and_not_as_redelivered(admin_client: Client) -> None:
    delivery = make_delivery(state="failed", redeliveries=2)
    assert Delivery.objects.filter(pk=delivery.pk).retry() == 1
    delivery.refresh_from_db()
    assert (delivery.redeliveries, delivery.resends) == (0, 1)
    for url in (DELIVERIES, f"{DELIVERIES}{delivery.pk}/change/"):
        text = page(admin_client, url)
        assert "<small>1 resent</small>" in text
        assert "redelivered" not in text


def test_a_redelivery_is_not_shown_as_resent(admin_client: Client) -> None:
    delivery = make_delivery(state="dispatched", confirm_by=timezone.now() - timedelta(hours=1))
    assert Delivery.objects.redeliver_overdue(limit=10, max_redeliveries=3) == ([delivery.pk], [])
    delivery.refresh_from_db()
    assert (delivery.redeliveries, delivery.resends) == (1, 0)
    for url in (DELIVERIES, f"{DELIVERIES}{delivery.pk}/change/"):
        text = page(admin_client, url)
        assert "<small>1 redelivered</small>" in text
        assert "resent" not in text


def test_a_delivery_without_its_event_is_shown(admin_client: Client) -> None:
    delivery = make_delivery(state="failed")
    Event.objects.filter(pk=delivery.event_id)._raw_delete("default")
    assert "the event no longer exists" in page(admin_client, DELIVERIES)
    assert "the event no longer exists" in page(admin_client, f"{DELIVERIES}{delivery.pk}/change/")


def test_deliveries_are_filtered_by_state_handler_topic_and_time(admin_client: Client) -> None:
    old_event = make_event("shop.order_paid", created_at=timezone.now() - timedelta(days=2))
    old = make_delivery(old_event, "failed", handler="shop.mail")
    pending = make_delivery(make_event("shop.order_sent"), handler="shop.mail")
    failed = make_delivery(make_event("shop.order_sent"), "failed", handler="shop.stock")
    done = make_delivery(make_event("shop.order_paid"), "succeeded", handler="shop.mail")
    assert listed(admin_client, DELIVERIES, state="failed") == [failed.pk, old.pk]
    assert listed(admin_client, DELIVERIES, state="failed", handler="shop.mail") == [old.pk]
    assert listed(admin_client, DELIVERIES, state="succeeded") == [done.pk]
    assert listed(admin_client, DELIVERIES, state="pending", topic="shop.order_sent") == [pending.pk]
    assert listed(admin_client, DELIVERIES, handler="shop.mail") == [done.pk, pending.pk, old.pk]
    assert listed(admin_client, DELIVERIES, topic="shop.order_paid") == [done.pk, old.pk]
    assert listed(admin_client, DELIVERIES, published="day") == [done.pk, failed.pk, pending.pk]


def test_pending_deliveries_are_listed_by_due_time(admin_client: Client) -> None:
    later = make_delivery(available_at=timezone.now() + timedelta(hours=1))
    sooner = make_delivery(available_at=timezone.now() - timedelta(hours=1))
    assert listed(admin_client, DELIVERIES, state="pending") == [sooner.pk, later.pk]


def test_deliveries_are_searched_by_event_key_and_topic(admin_client: Client) -> None:
    paid = make_delivery(make_event("shop.order_paid", key="order-7"), "failed")
    click = make_delivery(make_event("web.click"), "failed", key="visitor-1")
    assert listed(admin_client, DELIVERIES, q=str(paid.event_id)) == [paid.pk]
    assert listed(admin_client, DELIVERIES, q="order-7") == [paid.pk]
    assert listed(admin_client, DELIVERIES, q="visitor-") == [click.pk]
    assert listed(admin_client, DELIVERIES, q="web.click") == [click.pk]
    assert listed(admin_client, DELIVERIES, q="shop.*", state="failed") == [paid.pk]
    assert listed(admin_client, DELIVERIES, q=str(paid.event_id), state="pending") == []


@pytest.mark.parametrize(
    "query", [{"error__contains": "x"}, {"event__payload__x": "1"}, {"published": "never"}, {"after": "x"}]
)
def test_unknown_lookups_are_refused(admin_client: Client, query: dict[str, str]) -> None:
    assert admin_client.get(DELIVERIES, query).status_code in (302, 400)


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize(
    "query", [{}, {"state": "pending"}, {"state": "dispatched"}, {"handler": "tests.mail"}]
)
def test_pages_continue_forward_and_backward_without_gaps(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    monkeypatch.setattr("outbox.admin.deliveries.DeliveryAdmin.list_per_page", 3)
    event, state = make_event(), query.get("state", "pending")
    # All have the same due time and the same `confirm_by`, so that only the ids differ.
    moment = timezone.now()
    for _number in range(8):
        make_delivery(event, state, available_at=moment, confirm_by=moment)
    pages, url = [], f"{DELIVERIES}?{'&'.join(f'{key}={value}' for key, value in query.items())}"
    while url:
        changes = admin_client.get(url).context["cl"]
        pages.append([row.pk for row in changes.result_list])
        url = changes.after_url and DELIVERIES + changes.after_url
    assert [len(each) for each in pages] == [3, 3, 2]
    assert len({pk for each in pages for pk in each}) == 8
    back = admin_client.get(DELIVERIES + changes.before_url).context["cl"]
    assert [row.pk for row in back.result_list] == pages[1]
    assert [
        row.pk for row in admin_client.get(DELIVERIES + back.before_url).context["cl"].result_list
    ] == pages[0]


def test_a_search_that_reaches_the_scan_limit_links_further_rows(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagination, "SCAN_LIMIT", 5)
    wanted = make_event("shop.rare")
    for _number in range(7):
        make_event("shop.common")
    response = admin_client.get(EVENTS, {"topic": "shop.rare"})
    changes = response.context["cl"]
    assert list(changes.result_list) == []
    assert "Search further" in response.content.decode()
    further = admin_client.get(EVENTS + changes.after_url).context["cl"]
    assert [event.pk for event in further.result_list] == [wanted.pk]
    assert further.after_url == ""


def test_a_list_takes_at_most_seven_queries_and_no_count(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for _number in range(30):
        make_delivery(make_event(), "failed")
    for url in (EVENTS, DELIVERIES, PROCESSES):
        with django_assert_max_num_queries(7) as queries:
            page(admin_client, url)
        assert not [query for query in queries.captured_queries if "COUNT(*)" in query["sql"]]


# ---------------------------------------------------------------- statistics and relays


def test_statistics_show_each_handler_with_counts_percentiles_and_a_chart(admin_client: Client) -> None:
    tally = Tally(dispatched=3)
    for duration_s, result in ((0.1, "succeeded"), (0.2, "succeeded"), (0.3, "failed")):
        tally.count(result, duration_s)
    HandlerStats.objects.add({"shop.mail": tally})
    for url in (STATS, f"{STATS}shop.mail/"):
        for period in ("hour", "day", "week", "nonsense"):
            text = page(admin_client, url, period=period)
            assert "200 ms" in text
            assert "300 ms" in text
            assert "2 succeeded, 1 retried or failed" in text


def test_an_unknown_handler_has_a_page_without_statistics(admin_client: Client) -> None:
    assert "did not run in this period" in page(admin_client, f"{STATS}no/such handler/")


def test_processes_have_their_state_or_are_dead(admin_client: Client) -> None:
    problems = [{"kind": "relay_polls", "cause": "a pooler is in the way"}]
    polling = make_relay(host="web1", problems=problems)
    make_relay(host="web3", kind="worker", queues="mail,stock", threads=4, state="stopping")
    dead = make_relay(
        host="web2", seen_at=timezone.now() - timedelta(minutes=2), state="broker away", detail="no broker"
    )
    text = page(admin_client, PROCESSES)
    for part in (">running<", ">stopping<", ">dead<", "mail, stock"):
        assert part in text
    assert ">broker away<" not in text
    assert "no broker" in page(admin_client, f"{PROCESSES}{dead.pk}/change/")
    assert "a pooler is in the way" in page(admin_client, f"{PROCESSES}{polling.pk}/change/")
