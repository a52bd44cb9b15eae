"""Dramatiq alone: `actor.send`, in `on_commit` where there is a transaction."""

from __future__ import annotations

import time

import dramatiq
from django.db import transaction

from tests.benchmarks import ending, site
from tests.benchmarks.ending import Fed
from tests.benchmarks.protocol import Answer, Clock, added, measured, serve
from tests.benchmarks.ways.plain_app import plain

APP = "tests.benchmarks.ways.plain_app"


def publish(events: int) -> Answer:
    """Send a message when a business transaction has committed."""
    business = site.Business()
    clear()
    return added(
        business.bare,
        lambda count: business.with_each(count, lambda: transaction.on_commit(send)),
        events=events,
    )


def drain(events: int) -> Answer:
    """Send one message after the other: what a relay would do that calls `broker.enqueue` for each."""
    clear()
    return measured(lambda: feed(events), events)


def end_to_end(events: int) -> Answer:
    """Send messages one after the other to a worker that has nothing else to do."""
    clear()
    return ending.end_to_end(ending.worker(APP), feed=feed, events=events)


def latency(samples: int) -> Answer:
    """Send one message at a time, each after a commit."""
    clear()
    return ending.latency(ending.worker(APP), feed=feed_one, samples=samples)


def send() -> None:
    """Send one message."""
    plain.send(site.PAYLOAD)


def feed(events: int) -> Fed:
    """Send so many messages; the time counts from the first one on."""
    clock, since = Clock(), time.monotonic()
    with clock.running():
        for _ in range(events):
            send()
    return Fed(since, clock.cpu_s)


def feed_one(_events: int) -> Fed:
    """Send a message after a commit, from which the time counts."""
    moments: list[float] = []
    with transaction.atomic():
        transaction.on_commit(lambda: moments.append(time.monotonic()))
        transaction.on_commit(send)
    return Fed(moments[0])


def clear() -> None:
    """Empty the queues."""
    dramatiq.get_broker().flush_all()


if __name__ == "__main__":
    site.migrate()
    serve(
        {"publish": publish, "drain": drain, "end_to_end": end_to_end, "latency": latency},
        packages=("Django", "dramatiq", "psycopg"),
    )
