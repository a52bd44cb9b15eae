"""The data flow within the process of a test: publish, relay, run, confirm, and read the states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from django.db import transaction

import outbox
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event
from relay.loop import Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop

from .processes import wait_until


def publish(topic: str, payload: Any = None, **options: Any) -> Event:
    """Publish an event in its own transaction."""
    with transaction.atomic():
        return outbox.publish(topic, payload, **options)


@contextmanager
def relaying(**options: Any) -> Iterator[Relay]:
    """Make a relay of the default database that ends when no delivery is due."""
    with Stop() as stop:
        yield Relay(RelayOptions(**{"database": "default", "drain": True, **options}), stop=stop)


def relay_all(**options: Any) -> None:
    """Dispatch all due deliveries."""
    with relaying(**options) as relay:
        relay.run()


@contextmanager
def worker(broker: dramatiq.Broker | None = None, **options: Any) -> Iterator[dramatiq.Worker]:
    """Run a Dramatiq worker of a broker, by default of the default one, in this process."""
    broker = broker or dramatiq.get_broker()
    before = broker.middleware[:]
    working = dramatiq.Worker(broker, worker_timeout=20, worker_threads=4, **options)
    working.start()
    try:
        yield working
    finally:
        working.stop()
        # A worker leaves its middleware on the broker, where it would disturb later tests.
        broker.middleware[:] = before


def states_of(event: Event) -> dict[str, str]:
    """Return the state of each delivery of an event, by handler."""
    return dict(Delivery.objects.filter(event=event).values_list("handler", "state"))


def finish(event: Event, deadline_s: float = 20) -> dict[str, str]:
    """Wait until every delivery of an event is finished, and return their states."""

    def finished() -> dict[str, str] | None:
        found = states_of(event)
        return found if not {"pending", "dispatched"} & set(found.values()) else None

    return wait_until(finished, deadline_s, f"the deliveries of {event} to finish: {states_of(event)}")


def finish_with_retries(event: Event, deadline_s: float = 20) -> dict[str, str]:
    """Dispatch retries as they are due until every delivery of an event is finished; return their states."""

    def finished() -> dict[str, str] | None:
        relay_all()
        found = states_of(event)
        return found if not {"pending", "dispatched"} & set(found.values()) else None

    return wait_until(finished, deadline_s, f"the deliveries of {event} to finish")


def flush() -> None:
    """Write all buffered outcomes now."""
    wait_until(confirmations.flush, what="all outcomes to be written")


def clear_broker() -> None:
    """Drop the messages that earlier tests left in the broker of this process."""
    dramatiq.get_broker().flush_all()
