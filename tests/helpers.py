"""What the tests do again and again: relay, work, and look at the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from django.db import transaction

import outbox
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.processes import wait_until


def publish(topic: str, payload: Any = None, **options: Any) -> Event:
    """Publish in a transaction of its own."""
    with transaction.atomic():
        return outbox.publish(topic, payload, **options)


@contextmanager
def relaying(**options: Any) -> Iterator[Relay]:
    """Offer a relay of the default database that ends when nothing is due."""
    with Stop() as stop:
        yield Relay(RelayOptions(**{"database": "default", "drain": True, **options}), stop=stop)


def relay_all(**options: Any) -> None:
    """Dispatch all that is due."""
    with relaying(**options) as relay:
        relay.run()


@contextmanager
def worker(**options: Any) -> Iterator[dramatiq.Worker]:
    """Run a Dramatiq worker in this process."""
    broker = dramatiq.get_broker()
    working = dramatiq.Worker(broker, worker_timeout=20, worker_threads=4, **options)
    working.start()
    try:
        yield working
    finally:
        working.stop()
        # Dramatiq leaves the worker's own middleware on the broker, where the next worker would trip over it.
        broker.middleware[:] = [
            one for one in broker.middleware if getattr(one, "worker", None) is not working
        ]


def statuses(event: Event) -> dict[str, str]:
    """Return the state of each delivery of an event, by handler."""
    return dict(Delivery.objects.filter(event=event).values_list("handler", "status"))


def finish(event: Event, deadline_s: float = 20) -> dict[str, str]:
    """Wait until every delivery of an event is finished, and return their states."""

    def finished() -> dict[str, str] | None:
        found = statuses(event)
        return found if not {"pending", "dispatched"} & set(found.values()) else None

    return wait_until(finished, deadline_s, f"deliveries of {event} to finish: {statuses(event)}")


def flush() -> None:
    """Write all buffered outcomes now."""
    wait_until(confirmations.flush, what="all outcomes to be written")
