"""A site with this package and its default settings: the module of its workers, and its `manage.py`."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from tests.benchmarks import site
from tests.benchmarks.processes import Tally

from .dramatiq_site import PAUSE_S, QUEUE, dramatiq_broker

site.setup("django_dramatiq", "outbox", DRAMATIQ_BROKER=dramatiq_broker())

import outbox  # noqa: E402  # needs the settings

BATCH_SIZE = 500

tally = Tally()


@outbox.handler("bench.single", name="bench_single", queue_name=QUEUE)
def single(event: outbox.ReceivedEvent) -> None:
    tally.hit()
    if PAUSE_S:
        time.sleep(PAUSE_S)


@outbox.handler(
    "bench.batch",
    name="bench_batch",
    queue_name=QUEUE,
    batch_size=BATCH_SIZE,
    batch_wait=timedelta(seconds=0.2),
)
def batch(events: list[outbox.ReceivedEvent]) -> None:
    tally.hit(len(events))


if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
