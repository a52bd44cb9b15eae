"""The ways of this package."""

from __future__ import annotations

from . import outbox_app  # sets Django up, which the models need

# isort: split
import sys
import time
from functools import partial

import dramatiq
from django.db import connection, transaction
from django.db.models import Q

import outbox
from outbox.models import Delivery, ProcessHeartbeat
from relay.process import run_relays
from tests.benchmarks import ending, site
from tests.benchmarks.ending import Fed
from tests.benchmarks.protocol import Answer, Task, added, measured, serve

APP = "tests.benchmarks.ways.outbox_app"
RELAY = (sys.executable, "-m", APP, "run_relay")
CHUNK = 5000
CONFIRM = "UPDATE outbox_delivery SET state = 'succeeded', finished_at = now() WHERE state = 'dispatched'"
PACKAGES = ("django-dramatiq-outbox", "Django", "dramatiq", "psycopg", "redis", "pika")


def publish(events: int) -> Answer:
    """Publish one event in a business transaction."""
    business = site.Business()
    clear()
    return added(
        business.bare,
        lambda count: business.with_each(count, lambda: outbox.publish("bench.single", site.PAYLOAD)),
        events=events,
    )


def publish_many(events: int) -> Answer:
    """Publish many events in one transaction."""
    clear()
    return measured(lambda: write(events), events)


def drain(events: int) -> Answer:
    """Relay a backlog to the broker."""
    fill(events)
    return measured(relay_all, events)


def relays(events: int, count: int) -> Answer:
    """Dispatch a backlog with several relay processes."""
    clear()
    return ending.drained(
        *[RELAY] * count,
        feed=feed,
        events=events,
        is_ready=lambda: ProcessHeartbeat.objects.relays().count() == count,
        is_drained=is_all_sent,
    )


def end_to_end(events: int, topic: str = "bench.single", pause_s: float = 0.0) -> Answer:
    """Commit a backlog for an idle relay and an idle worker."""
    clear()
    warm_up = outbox_app.BATCH_SIZE if topic == "bench.batch" else ending.WARM_UP_EVENTS
    return ending.end_to_end(
        ending.worker(APP),
        RELAY,
        feed=lambda count: feed(count, topic),
        events=events,
        settle=lambda: ending.wait_until(_all_confirmed),
        warm_up=warm_up,
        pause_s=pause_s,
    )


def latency(samples: int, rate: float = 0.0) -> Answer:
    """Commit one event at a time."""
    clear()
    return ending.latency(ending.worker(APP), RELAY, feed=feed, samples=samples, rate=rate)


def recovery(samples: int) -> Answer:
    """Kill a worker, and measure until another one has run its messages."""
    return ending.recovery(ending.worker(APP), RELAY, clear=clear, feed=feed, samples=samples)


# ---------------------------------------------------------------- steps


def relay_all() -> None:
    """Dispatch all due deliveries."""
    run_relays(["default"], drain=True)


def write(events: int, topic: str = "bench.single") -> None:
    """Publish events in one transaction."""
    with transaction.atomic():
        for start in range(0, events, CHUNK):
            outbox.publish_many(
                outbox.EventData(topic, site.PAYLOAD) for _ in range(min(CHUNK, events - start))
            )


def feed(events: int, topic: str = "bench.single") -> Fed:
    """Publish events in one transaction; the time begins with its commit."""
    moments: list[float] = []
    with transaction.atomic():
        # Runs before the hook that wakes the relay.
        transaction.on_commit(lambda: moments.append(time.monotonic()))
        if events == 1:
            outbox.publish(topic, site.PAYLOAD)
        else:
            write(events, topic)
    return Fed(moments[0])


def fill(events: int) -> None:
    """Write a backlog into empty tables, with empty queues."""
    clear()
    write(events)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE outbox_event, outbox_delivery")


def clear() -> None:
    """Empty the tables and the queues."""
    with connection.cursor() as cursor:
        # A relay may be running. Its claims also lock deliveries before events.
        cursor.execute(
            "TRUNCATE outbox_delivery, outbox_event, outbox_handlerstats, outbox_processheartbeat, "
            "bench_order"
        )
    dramatiq.get_broker().flush_all()


def settle() -> None:
    """Confirm all dispatched deliveries, as workers would, and empty the queues."""
    with connection.cursor() as cursor:
        cursor.execute(CONFIRM)
    dramatiq.get_broker().flush_all()


def is_all_sent() -> bool:
    """Return whether no delivery is pending."""
    return not Delivery.objects.filter(state="pending").exists()


def _all_confirmed() -> bool:
    return not Delivery.objects.filter(Q(state="pending") | Q(state="dispatched")).exists()


def tasks() -> dict[str, Task]:
    """Return the tasks that this version supports."""
    found: dict[str, Task] = {
        "publish": publish,
        "publish_many": publish_many,
        "drain": drain,
        "relays": relays,
        "end_to_end": end_to_end,
        "end_to_end_batched": partial(end_to_end, topic="bench.batch"),
        "latency": latency,
        "recovery": recovery,
    }
    return found


if __name__ == "__main__":
    site.migrate()
    serve(tasks(), packages=PACKAGES)
