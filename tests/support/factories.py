"""Rows of the tables in any state: events, deliveries and relays."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.db import connection
from django.db.models.functions import Now

from outbox.models import Delivery, Event, ProcessHeartbeat
from outbox.models.clock import from_project, to_column
from outbox.uuid7 import uuid7, uuid7_floor


def make_event(topic: str = "shop.order_paid", payload: Any = None, **fields: Any) -> Event:
    """Write an event without deliveries; `created_at` also determines its id."""
    created_at: datetime | None = fields.get("created_at")
    stamp = 0 if created_at is None else uuid7_floor(from_project(created_at)).int >> 64
    # The time of `created_at` and the random half of a new id.
    pk = uuid7() if created_at is None else type(uuid7())(int=stamp << 64 | uuid7().int % (1 << 64))
    if created_at is not None:
        fields["created_at"] = to_column(from_project(created_at), connection)
    return Event.objects.create(**{"id": pk, "topic": topic, "payload": payload or {}, **fields})


def make_delivery(event: Event | None = None, state: str = "pending", **fields: Any) -> Delivery:
    """Write a delivery in a state, with the times and the error of that state."""
    event = event or make_event()
    by_state: dict[str, dict[str, Any]] = {
        "dispatched": {"attempts": 1, "dispatched_at": Now(), "confirm_by": Now() + timedelta(hours=1)},
        "succeeded": {"attempts": 1, "dispatched_at": Now(), "finished_at": Now()},
        "failed": {"attempts": 3, "dispatched_at": Now(), "finished_at": Now(), "error": "ValueError: no"},
        "discarded": {"finished_at": Now(), "error": "not needed"},
    }
    values = {"handler": "tests.mail", "queue": "mail", **by_state.get(state, {}), **fields}
    delivery: Delivery = Delivery.objects.create(event=event, state=state, **values)
    delivery.refresh_from_db()
    return delivery


def make_relay(**fields: Any) -> ProcessHeartbeat:
    """Write the heartbeat of a relay."""
    relay: ProcessHeartbeat = ProcessHeartbeat.objects.create(
        **{"id": uuid4(), "host": "web1", "pid": 7, **fields}
    )
    return relay
