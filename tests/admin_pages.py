"""What the tests of the admin ask of it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from django.test import Client

from outbox.models import Delivery, RelayHeartbeat

EVENTS = "/admin/outbox/event/"
DELIVERIES = "/admin/outbox/delivery/"
STATS = "/admin/outbox/handlerstats/"
RELAYS = "/admin/outbox/relayheartbeat/"


def page(client: Client, url: str, **query: Any) -> str:
    response = client.get(url, query)
    assert response.status_code == 200, (response.status_code, response.headers.get("Location"))
    return response.content.decode()


def listed(client: Client, url: str, **query: Any) -> list[Any]:
    response = client.get(url, query)
    assert response.status_code == 200, response.headers.get("Location")
    return [row.pk for row in response.context["cl"].result_list]


def act(client: Client, action: str, *deliveries: Delivery, **fields: Any) -> Any:
    data = {"action": action, "_selected_action": [one.pk for one in deliveries], "index": 0, **fields}
    return client.post(DELIVERIES, data, follow=True)


def state(delivery: Delivery) -> str:
    delivery.refresh_from_db()
    return delivery.status


def make_relay(**fields: Any) -> RelayHeartbeat:
    relay: RelayHeartbeat = RelayHeartbeat.objects.create(
        **{"id": uuid4(), "host": "web1", "pid": 7, **fields}
    )
    return relay
