"""What both the recording and the tests do: look at the messages, run them, and look at the outcome."""

from __future__ import annotations

from typing import Any

import dramatiq

from outbox.models import Delivery
from tests.helpers import flush, relay_all, worker
from tests.processes import wait_until
from tests.testapp.models import Effect
from tests.upgrades.handlers import QUEUE
from tests.upgrades.reading import parse


def messages_sent() -> dict[str, Any]:
    """Return the last message in the broker of each handler: of the calls the one with options of its own."""
    bodies = [parse(body) for body in dramatiq.get_broker().queues[QUEUE].queue]
    return {body["actor_name"]: body for body in bodies}


def work_all() -> None:
    """Relay and work until every delivery is finished; a lane takes several rounds."""

    def done() -> bool:
        relay_all()
        flush()
        return not Delivery.objects.filter(status__in=["pending", "dispatched"]).exists()

    with worker():
        wait_until(done, 60, "all deliveries to finish")


def outcomes() -> dict[str, Any]:
    """Return how the deliveries ended, and what the handlers did, in an order that does not vary."""
    deliveries = Delivery.objects.order_by("handler", "pk").values_list("handler", "status")
    return {"deliveries": [list(one) for one in deliveries], "effects": effects()}


def effects(**which: Any) -> list[Any]:
    """Return what the handlers did."""
    done = Effect.objects.filter(**which).values_list("handler", "key", "detail")
    return sorted(([*one] for one in done), key=repr)
