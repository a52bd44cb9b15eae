"""A site with this package, its settings as they come; what its workers import, and its `manage.py`."""

from __future__ import annotations

import inspect
import sys
from datetime import timedelta
from typing import Any

from tests.benchmarks import site
from tests.benchmarks.processes import Tally
from tests.benchmarks.ways.dramatiq_site import QUEUE, dramatiq_broker

site.setup("django_dramatiq", "outbox", DRAMATIQ_BROKER=dramatiq_broker())

import outbox  # noqa: E402  # needs the settings

BATCH_SIZE = 500
PACK = 50
CAN_PACK = "pack" in inspect.signature(outbox.handler).parameters

tally = Tally()


@outbox.handler("bench.single", name="bench_single", queue_name=QUEUE)
def single(event: outbox.ReceivedEvent) -> None:
    tally.hit()


@outbox.handler(
    "bench.batch",
    name="bench_batch",
    queue_name=QUEUE,
    batch_size=BATCH_SIZE,
    batch_wait=timedelta(seconds=0.2),
)
def batch(events: list[outbox.ReceivedEvent]) -> None:
    tally.hit(len(events))


if CAN_PACK:
    packing: dict[str, Any] = {"pack": PACK}

    @outbox.handler("bench.pack", name="bench_pack", queue_name=QUEUE, **packing)
    def packed(event: outbox.ReceivedEvent) -> None:
        tally.hit()


if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
