"""Shared by the recording and the tests: read the messages, run them, and read the outcomes."""

from __future__ import annotations

from typing import Any

import dramatiq

from outbox.models import Delivery
from tests.support.data_flow import flush, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp.models import Effect

from .handlers import QUEUE
from .reading import parse


def messages_sent() -> dict[str, Any]:
    """Return the last message of each handler in the broker; the last call is the one with options."""
    bodies = [parse(body) for body in dramatiq.get_broker().queues[QUEUE].queue]
    return {body["actor_name"]: body for body in bodies}


def work_all() -> None:
    """Relay and work until every delivery is finished; an ordering key takes several rounds."""

    def done() -> bool:
        relay_all()
        flush()
        return not Delivery.objects.filter(state__in=["pending", "dispatched"]).exists()

    with worker():
        wait_until(done, 60, "all deliveries to finish")


def outcomes() -> dict[str, Any]:
    """Return the states of the deliveries and the effects of the handlers, in a fixed order."""
    deliveries = Delivery.objects.order_by("handler", "pk").values_list("handler", "state")
    return {"deliveries": [list(one) for one in deliveries], "effects": effects()}


def effects(**filters: Any) -> list[Any]:
    """Return the effects of the handlers."""
    done = Effect.objects.filter(**filters).values_list("handler", "key", "detail")
    return sorted(([*one] for one in done), key=repr)
