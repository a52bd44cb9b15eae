"""Where the time goes in this package: `make bench ARGS="--profile relay"`."""

from __future__ import annotations

import cProfile
import os
import pstats
import time

from tests.benchmarks.benchmark import Scale
from tests.benchmarks.surroundings import Surroundings

LINES = 40
EVENTS = {"publish": {"small": 100, "full": 2000}, "relay": {"small": 500, "full": 20_000}}


def profile(what: str, scale: Scale, surroundings: Surroundings) -> None:
    """Run a part of a benchmark in this process under cProfile, and print what it spent its time on."""
    os.environ.update(surroundings.environment("redis"))
    # After the environment, which the site reads when it is imported.
    from django.db import connections

    import outbox as package
    from tests.benchmarks import site
    from tests.benchmarks.ways import outbox

    site.migrate()
    events = EVENTS[what][scale]
    # CPU time: what waits for the server is not ours, and a busy machine would tell lies.
    profiler = cProfile.Profile(time.process_time)
    if what == "relay":
        outbox.fill(min(events, 500))
        outbox.relay_all()
        outbox.fill(events)
        profiler.runcall(outbox.relay_all)
    else:
        business = site.Business()
        business.with_each(50, lambda: package.publish("bench.single", site.PAYLOAD))
        profiler.runcall(business.with_each, events, lambda: package.publish("bench.single", site.PAYLOAD))
    connections.close_all()
    print(f"{what}: {events} events")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(LINES).sort_stats("cumtime").print_stats(LINES)
