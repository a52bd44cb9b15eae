"""Requests to the admin: pages, lists and actions."""

from __future__ import annotations

from typing import Any

from django.test import Client

from outbox.models import Delivery

EVENTS = "/admin/outbox/event/"
DELIVERIES = "/admin/outbox/delivery/"
STATS = "/admin/outbox/handlerstats/"
PROCESSES = "/admin/outbox/processheartbeat/"


def page(client: Client, url: str, **query: Any) -> str:
    """Return the text of a page."""
    response = client.get(url, query)
    assert response.status_code == 200, (response.status_code, response.headers.get("Location"))
    return response.content.decode()


def listed(client: Client, url: str, **query: Any) -> list[Any]:
    """Return the primary keys of the rows that a list shows."""
    response = client.get(url, query)
    assert response.status_code == 200, response.headers.get("Location")
    return [row.pk for row in response.context["cl"].result_list]


def act(client: Client, action: str, *deliveries: Delivery, **fields: Any) -> Any:
    """Run an action on deliveries; return the response of the page after it."""
    data = {"action": action, "_selected_action": [one.pk for one in deliveries], "index": 0, **fields}
    return client.post(DELIVERIES, data, follow=True)


def state(delivery: Delivery) -> str:
    """Return the current state of a delivery."""
    delivery.refresh_from_db()
    return delivery.state
