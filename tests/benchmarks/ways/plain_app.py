"""A site with Dramatiq and without an outbox: the module of its workers."""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks import site
from tests.benchmarks.processes import Tally

from .dramatiq_site import PAUSE_S, QUEUE, dramatiq_broker

site.setup("django_dramatiq", DRAMATIQ_BROKER=dramatiq_broker())

import dramatiq  # noqa: E402  # needs the broker

tally = Tally()


@dramatiq.actor(actor_name="bench_plain", queue_name=QUEUE)
def plain(payload: dict[str, Any]) -> None:
    tally.hit()
    if PAUSE_S:
        time.sleep(PAUSE_S)
