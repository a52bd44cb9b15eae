"""Hostile requests: no parameter of any admin page is answered with a server error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.contrib import admin
from django.db import transaction
from django.test import Client

from outbox.admin.base import AFTER, BEFORE, OutboxAdmin
from outbox.models import Delivery, HandlerStats, PausedHandler, Tally
from tests.support.admin_pages import DELIVERIES, EVENTS, PROCESSES, STATS
from tests.support.factories import make_delivery, make_relay

pytestmark = [
    pytest.mark.django_db,
    # Django warns of the naive times that a page position may hold, and of a charset that it ignores.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PAUSED = "/admin/outbox/pausedhandler/"

HOSTILE = {
    "empty": "",
    "nul": "a%00b",
    "newline": "a%0D%0AX-Header:%20b",
    "invalid_utf8": "%FF%ED%A0%80",
    "5000_digits": "9" * 5000,
    "25_digits": "9" * 25,
    "2_to_the_63": "9223372036854775808",
    "long": "x" * 50_000,
    "pattern": "*." * 400 + "*",
    "format": "%25s%25(a)s{0}'\";--",
}

POSITIONS = (
    "~",
    f"{'9' * 30}~{'9' * 30}",
    "0001-01-01T00:00:00%2B14:00~1",
    "9999-12-31T23:59:59-14:00~1",
    "2026-01-01T00:00:00~ffffffff-ffff-ffff-ffff-ffffffffffff",
    f"2026-01-01T00:00:00~{'9' * 30}",
    "9223372036854775808",
    "NaN",
)

OF_LISTS = (AFTER, BEFORE, "q", "p", "all", "e", "o", "_facets", "_popup", "_to_field", "handler__regex")
OF_PAGES = ("handler", "period", "_changelist_filters", "_popup", "_to_field")
OF_FORMS = ("handler", "back_to", "confirmed", "action", "index", "select_across", "_selected_action")
UNKNOWN = ("id__in", "event__payload__a", "pk__isnull", "state__exact", "%00", "_" * 5000)


@pytest.fixture
def rows() -> Delivery:
    tally = Tally(dispatched=1)
    tally.count("failed", 0.1)
    HandlerStats.objects.add({"tests.mail": tally, "two\nlines": tally, "record": tally})
    PausedHandler.objects.pause("tests.mail", "no mail server")
    PausedHandler.objects.pause("two\nlines")
    make_relay()
    make_delivery(state="pending", key="order-7")
    return make_delivery(state="failed", key="order-7")


def pages(delivery: Delivery) -> dict[str, tuple[str, ...]]:
    """Return the address and the parameters of every page."""
    found = {}
    for model, model_admin in admin.site._registry.items():
        if isinstance(model_admin, OutboxAdmin):
            filters = (getattr(each, "parameter_name", "") for each in model_admin.list_filter)
            url = f"/admin/outbox/{model._meta.model_name}/"
            found[url] = (*OF_LISTS, *filters)
    for address in (
        f"{DELIVERIES}{delivery.pk}/change/",
        f"{DELIVERIES}{delivery.pk}/discard/",
        f"{EVENTS}{delivery.event_id}/change/",
        f"{EVENTS}{delivery.event_id}/cancel/",
        f"{PAUSED}tests.mail/change/",
        f"{PAUSED}pause/",
        f"{STATS}record/",
    ):
        found[address] = OF_PAGES
    return found


def forms(delivery: Delivery) -> dict[str, dict[str, str]]:
    """Return the address and the usual fields of every form."""
    chosen = {"_selected_action": str(delivery.pk), "index": "0"}
    event = {"_selected_action": str(delivery.event_id), "index": "0"}
    confirmed = {"confirmed": "yes", "reason": "spam"}
    return {
        f"{DELIVERIES}?a": {"action": "retry_selected", **chosen},
        f"{DELIVERIES}?b": {"action": "discard_selected", **chosen, **confirmed},
        f"{EVENTS}": {"action": "cancel_selected", **event, **confirmed},
        f"{PAUSED}": {"action": "resume_selected", "_selected_action": "tests.mail", "index": "0"},
        f"{PAUSED}pause/": {"handler": "record", "reason": "no"},
        f"{PAUSED}pause/?handler=record": {"handler": "record", "reason": "no"},
        f"{PAUSED}resume/": {"handler": "tests.mail", "back_to": "tests.mail"},
        f"{DELIVERIES}{delivery.pk}/retry/": {},
        f"{DELIVERIES}{delivery.pk}/discard/": confirmed,
        f"{EVENTS}{delivery.event_id}/cancel/": confirmed,
    }


class Unanswered(list[tuple[Any, ...]]):
    """The requests that were answered with a server error."""

    def __init__(self, client: Client) -> None:
        client.raise_request_exception = False
        self._client = client

    def send(self, method: str, url: str, **options: Any) -> None:
        # A savepoint for each request, as an error of the database would end the test's transaction.
        with transaction.atomic():
            response = self._client.generic(method, url, **options)
            for _ in range(3):
                if not 300 <= response.status_code < 400:
                    break
                response = self._client.get(response.headers["Location"])
            if response.status_code >= 500:
                error = getattr(response, "exc_info", None)
                self.append((method, url[:120], str(options)[:200], response.status_code, error and error[1]))
            transaction.set_rollback(True)


@pytest.fixture
def unanswered(admin_client: Client) -> Iterator[Unanswered]:
    found = Unanswered(admin_client)
    yield found
    assert not found, f"{len(found)}: " + "\n".join(map(str, found[:20]))


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_parameter_of_a_page_is_answered_with_a_server_error(
    unanswered: Unanswered, rows: Delivery, value: str
) -> None:
    for url, names in pages(rows).items():
        for name in dict.fromkeys(names):
            unanswered.send("GET", f"{url}?{name}={value}")


def test_no_page_position_is_answered_with_a_server_error(unanswered: Unanswered, rows: Delivery) -> None:
    for url in (
        f"{DELIVERIES}?",
        f"{DELIVERIES}?state=pending&",
        f"{EVENTS}?",
        f"{PROCESSES}?",
        f"{PAUSED}?",
    ):
        for position in POSITIONS:
            for name in (AFTER, BEFORE):
                unanswered.send("GET", f"{url}{name}={position}")


def test_no_unknown_parameter_is_answered_with_a_server_error(unanswered: Unanswered, rows: Delivery) -> None:
    for url in pages(rows):
        for name in UNKNOWN:
            unanswered.send("GET", f"{url}?{name}=1")


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_field_of_a_form_is_answered_with_a_server_error(
    unanswered: Unanswered, rows: Delivery, value: str
) -> None:
    for url, fields in forms(rows).items():
        for name in dict.fromkeys((*fields, *OF_FORMS)):
            kept = urlencode({key: text for key, text in fields.items() if key != name})
            unanswered.send(
                "POST",
                url,
                data=f"{kept}&{name}={value}",
                content_type="application/x-www-form-urlencoded",
            )


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_address_is_answered_with_a_server_error(
    unanswered: Unanswered, rows: Delivery, value: str
) -> None:
    for model, model_admin in admin.site._registry.items():
        if isinstance(model_admin, OutboxAdmin):
            url = f"/admin/outbox/{model._meta.model_name}/{value or 'a'}/"
            for view in ("", "change/", "history/"):
                unanswered.send("GET", f"{url}{view}")
            for view in ("retry/", "discard/", "cancel/"):
                unanswered.send("POST", f"{url}{view}")


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7"])
def test_a_strange_charset_is_not_answered_with_a_server_error(
    unanswered: Unanswered, rows: Delivery, charset: str
) -> None:
    kind = f"application/x-www-form-urlencoded; charset={charset}"
    for value in ("%5Cud800", "%00", "%2BAAA-"):
        unanswered.send("GET", f"{DELIVERIES}?handler={value}", content_type=kind)
        for url in forms(rows):
            unanswered.send("POST", url, data=f"handler={value}&back_to={value}", content_type=kind)


def test_a_handler_whose_name_has_two_lines_has_a_page(admin_client: Client, rows: Delivery) -> None:
    url = f"{STATS}{quote('two' + chr(10) + 'lines')}/"
    assert f'href="{url}' in admin_client.get(STATS).content.decode()
    assert admin_client.get(url).status_code == 200
