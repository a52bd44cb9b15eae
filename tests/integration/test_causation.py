"""What caused an event, and what it caused."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from outbox.models import Event
from outbox.operations import causation
from outbox.operations.causation import CausationTree, CausedEvent, causation_tree
from tests.support.admin_pages import DELIVERIES, EVENTS, page
from tests.support.factories import make_delivery, make_event

pytestmark = pytest.mark.django_db


def caused_by(cause: Event, topic: str = "shop.mail_sent", **fields: Any) -> Event:
    """Make an event that a handler of another event has published."""
    root = cause.headers.get("correlation_id", str(cause.pk))
    headers = {"causation_id": str(cause.pk), "correlation_id": root}
    return make_event(topic, headers=headers, **fields)


def tree(event: Event) -> CausationTree:
    event.refresh_from_db()
    return causation_tree("default", event)


def shape(node: CausedEvent) -> Any:
    """Return the topics of a tree as nested lists."""
    return [node.event.topic, *(shape(one) for one in node.caused)]


def test_every_event_of_a_chain_shows_the_same_tree() -> None:
    order = make_event("shop.order_paid")
    mail = caused_by(order, "shop.mail_sent")
    stock = caused_by(order, "shop.stock_reserved")
    box = caused_by(stock, "shop.box_packed")
    make_event("shop.order_paid")  # another chain
    wanted = ["shop.order_paid", ["shop.mail_sent"], ["shop.stock_reserved", ["shop.box_packed"]]]
    for event in (order, mail, stock, box):
        found = tree(event)
        assert shape(found.top) == wanted
        assert (found.pruned_cause, found.is_cut) == ("", False)


def test_each_event_has_its_deliveries_with_their_states() -> None:
    order = make_event()
    mail = caused_by(order)
    first, second = (
        make_delivery(order, "succeeded", handler="a"),
        make_delivery(order, "failed", handler="b"),
    )
    third = make_delivery(mail, "pending", handler="c")
    top = tree(mail).top
    assert top.deliveries == [(first.pk, "a", "succeeded"), (second.pk, "b", "failed")]
    assert top.caused[0].deliveries == [(third.pk, "c", "pending")]


def test_a_pruned_cause_is_named() -> None:
    order = make_event()
    mail = caused_by(order)
    bounce = caused_by(mail, "shop.mail_bounced")
    pruned = str(order.pk)
    order.delete()
    found = tree(bounce)
    assert shape(found.top) == ["shop.mail_sent", ["shop.mail_bounced"]]
    assert found.pruned_cause == pruned


def test_a_cause_outside_the_first_events_of_its_chain_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causation, "MAX_EVENTS", 3)
    event = make_event("shop.tick")
    for _ in range(6):
        event = caused_by(event, "shop.tick")
    found = tree(event)
    assert sum(1 for _ in found.top) == 7
    assert list(found.top)[-1].event == event


def test_a_long_chain_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causation, "MAX_LEVELS", 4)
    root = event = make_event("shop.tick")
    for _ in range(3):
        event = caused_by(event, "shop.tick")
    assert not tree(root).is_cut
    caused_by(event, "shop.tick")
    found = tree(root)
    assert sum(1 for _ in found.top) == 4
    assert found.is_cut


def test_a_wide_tree_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causation, "MAX_EVENTS", 5)
    root = make_event()
    for _ in range(7):
        caused_by(root)
    found = tree(root)
    assert sum(1 for _ in found.top) == 6
    assert found.is_cut


def test_a_circle_of_causes_ends() -> None:
    first, second = make_event("shop.first"), make_event("shop.second")
    for one, other in ((first, second), (second, first)):
        one.headers = {"causation_id": str(other.pk), "correlation_id": str(first.pk)}
        one.save()
    assert sum(1 for _ in tree(first).top) == 2


@pytest.mark.parametrize("headers", [[1], {"causation_id": 7}, {"causation_id": "x", "correlation_id": None}])
def test_headers_that_were_written_by_hand_are_no_causes(headers: Any) -> None:
    found = tree(make_event(headers=headers))
    assert (found.top.caused, found.pruned_cause) == ([], "")


def test_the_number_of_queries_does_not_depend_on_the_number_of_events() -> None:
    def queries(count: int) -> int:
        root = make_event()
        for _ in range(count):
            make_delivery(caused_by(root), "succeeded")
        root.refresh_from_db()
        with CaptureQueriesContext(
            connection,
        ) as captured:
            causation_tree("default", root)
        return len(captured)

    assert queries(1) == queries(150) <= 4


def test_the_page_shows_the_tree_with_links_and_the_context_on_top(admin_client: Client) -> None:
    order = make_event("shop.order_paid", headers={"context": {"user_id": 7, "request_id": "<r>"}})
    mail = caused_by(order, "shop.mail_sent", key="<order>")
    delivery = make_delivery(mail, "failed", handler="shop.mail")
    text = page(admin_client, f"{EVENTS}{order.pk}/change/")
    assert "Causes and effects" in text
    assert f"{EVENTS}{mail.pk}/change/" in text
    assert f"{DELIVERIES}{delivery.pk}/change/" in text
    assert "&lt;order&gt;" in text
    assert "request_id: &lt;r&gt;<br>user_id: 7" in text
    assert text.count('aria-current="true"') == 1


def test_the_page_of_a_lone_event_has_no_tree(admin_client: Client) -> None:
    assert "Causes and effects" not in page(admin_client, f"{EVENTS}{make_event().pk}/change/")
