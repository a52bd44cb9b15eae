"""Profiles of this package: `make bench ARGS="--profile relay"`."""

from __future__ import annotations

import cProfile
import os
import pstats
import time

from .benchmark import Scale
from .surroundings import Surroundings

LINES = 40
EVENTS = {"publish": {"small": 100, "full": 2000}, "relay": {"small": 500, "full": 20_000}}


def profile(part: str, scale: Scale, surroundings: Surroundings) -> None:
    """Run a part of a benchmark in this process under cProfile, and print the most expensive functions."""
    os.environ.update(surroundings.environment("redis"))
    # After the change of the environment, which the site reads at import.
    from django.db import connections

    import outbox as package

    from . import site
    from .ways import outbox

    site.migrate()
    events = EVENTS[part][scale]
    # CPU time: it excludes waits for the server and depends less on other work of the machine.
    profiler = cProfile.Profile(time.process_time)
    if part == "relay":
        outbox.fill(min(events, 500))
        outbox.relay_all()
        outbox.fill(events)
        profiler.runcall(outbox.relay_all)
    else:
        business = site.Business()
        business.with_each(50, lambda: package.publish("bench.single", site.PAYLOAD))
        profiler.runcall(business.with_each, events, lambda: package.publish("bench.single", site.PAYLOAD))
    connections.close_all()
    print(f"{part}: {events} events")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(LINES).sort_stats("cumtime").print_stats(LINES)
