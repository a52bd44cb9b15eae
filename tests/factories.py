"""Rows as publishing and relaying would have left them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models.functions import Now

from outbox.models import Delivery, Event
from outbox.uuid7 import uuid7, uuid7_floor


def make_event(topic: str = "shop.order_paid", payload: Any = None, **fields: Any) -> Event:
    """Write an event without deliveries; `created_at` also decides its id."""
    created_at: datetime | None = fields.get("created_at")
    stamp = 0 if created_at is None else uuid7_floor(created_at).int >> 64
    # The random half of a new id, behind the time of an old one.
    pk = uuid7() if created_at is None else type(uuid7())(int=stamp << 64 | uuid7().int % (1 << 64))
    return Event.objects.create(**{"id": pk, "topic": topic, "payload": payload or {}, **fields})


def make_delivery(event: Event | None = None, status: str = "pending", **fields: Any) -> Delivery:
    """Write a delivery in a state, with the times and the error that go with it."""
    event = event or make_event()
    by_state: dict[str, dict[str, Any]] = {
        "dispatched": {"attempts": 1, "dispatched_at": Now(), "confirm_by": Now() + timedelta(hours=1)},
        "succeeded": {"attempts": 1, "dispatched_at": Now(), "finished_at": Now()},
        "failed": {"attempts": 3, "dispatched_at": Now(), "finished_at": Now(), "error": "ValueError: no"},
        "discarded": {"finished_at": Now(), "error": "nobody wants it"},
    }
    values = {"handler": "tests.mail", "queue": "mail", **by_state.get(status, {}), **fields}
    delivery: Delivery = Delivery.objects.create(event=event, status=status, **values)
    delivery.refresh_from_db()
    return delivery
