"""Plain Dramatiq: `actor.send`, in `on_commit` if there is a transaction."""

from __future__ import annotations

import time

import dramatiq
from django.db import transaction

from tests.benchmarks import ending, site
from tests.benchmarks.ending import Fed
from tests.benchmarks.protocol import Answer, Clock, added, measured, serve

from .plain_app import plain

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
    """Send messages one by one, as a relay that calls `broker.enqueue` for each."""
    clear()
    return measured(lambda: feed(events), events)


def end_to_end(events: int, pause_s: float = 0.0) -> Answer:
    """Send messages one by one to an idle worker."""
    clear()
    return ending.end_to_end(ending.worker(APP), feed=feed, events=events, pause_s=pause_s)


def latency(samples: int, rate: float = 0.0) -> Answer:
    """Send one message at a time, each after a commit."""
    clear()
    return ending.latency(ending.worker(APP), feed=feed_one, samples=samples, rate=rate)


def recovery(samples: int) -> Answer:
    """Kill a worker, and measure until another one has run its messages."""
    return ending.recovery(ending.worker(APP), clear=clear, feed=feed, samples=samples)


def send() -> None:
    """Send one message."""
    plain.send(site.PAYLOAD)


def feed(events: int) -> Fed:
    """Send messages; the time begins with the first one."""
    clock, since = Clock(), time.monotonic()
    with clock.running():
        for _ in range(events):
            send()
    return Fed(since, clock.cpu_s)


def feed_one(_events: int) -> Fed:
    """Send a message after a commit; the time begins with the commit."""
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
        {
            "publish": publish,
            "drain": drain,
            "end_to_end": end_to_end,
            "latency": latency,
            "recovery": recovery,
        },
        packages=("Django", "dramatiq", "psycopg"),
    )
