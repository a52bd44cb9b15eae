"""From the commit to the end of the handler: throughput and idle latency, measured alike for everybody."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.benchmarks.processes import Child, Reports, children
from tests.benchmarks.protocol import Answer, Clock

WARM_UP_EVENTS = 100
COLD_SAMPLES = 5
# Until processes have started and connected.
START_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 240.0
POLL_INTERVAL_S = 0.005
# Between two events, so that everything has come to rest.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.12, 0.2

Command = tuple[str, ...]


class Fed(NamedTuple):
    """What feeding took.

    Args:
        since: the commit, or the first send without one, on the monotonic clock.
        cpu_s: of what feeds, where nobody else carries the events to the worker.
    """

    since: float
    cpu_s: float = 0.0


def end_to_end(
    *commands: Command,
    feed: Callable[[int], Fed],
    events: int,
    settle: Callable[[], object] = lambda: None,
    warm_up: int = WARM_UP_EVENTS,
) -> Answer:
    """Feed running processes, and measure until all events are handled, and confirmed if there is that."""
    reports = Reports(f"{warm_up},{warm_up + events}")
    try:
        with children(*commands, env=reports.env) as running:
            feed(warm_up)
            reports.wait(START_TIMEOUT_S)
            settle()
            before = _cpu_s(running)
            fed = feed(events)
            _count, handled = reports.wait(FINISH_TIMEOUT_S)
            settle()
            settled = time.monotonic()
            cpu_s = _cpu_s(running) - before + fed.cpu_s
            return {
                "events": events,
                "wall_s": settled - fed.since,
                "cpu_s": cpu_s,
                "handled_s": handled - fed.since,
            }
    finally:
        reports.close()


def drained(
    *commands: Command,
    feed: Callable[[int], Fed],
    events: int,
    is_drained: Callable[[], bool],
    is_ready: Callable[[], bool] = lambda: True,
) -> Answer:
    """Feed running relays, and measure until they have taken everything out of the table."""
    with children(*commands, env={}) as running:
        wait_until(is_ready, START_TIMEOUT_S)
        feed(WARM_UP_EVENTS)
        wait_until(is_drained, START_TIMEOUT_S)
        before = _cpu_s(running)
        since = feed(events).since
        wait_until(is_drained, FINISH_TIMEOUT_S)
        wall_s = time.monotonic() - since
        return {"events": events, "wall_s": wall_s, "cpu_s": _cpu_s(running) - before}


def wait_until(done: Callable[[], bool], timeout_s: float = FINISH_TIMEOUT_S) -> None:
    """Poll until something is done; raise `TimeoutError` when it never is."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {done.__name__}")
        time.sleep(POLL_INTERVAL_S)


def latency(*commands: Command, feed: Callable[[int], Fed], samples: int) -> Answer:
    """Publish one event at a time to processes at rest; measure from the commit to the handler.

    The CPU time is that of the publisher while it publishes, and of the other processes all the time.
    """
    reports, publisher = Reports("all"), Clock()
    try:
        with children(*commands, env=reports.env) as running:
            # The first few find cold connections.
            for _ in range(COLD_SAMPLES):
                _one(feed, reports, running, Clock())
            before = _cpu_s(running)
            taken_s = [_one(feed, reports, running, publisher) for _ in range(samples)]
            cpu_s = _cpu_s(running) - before + publisher.cpu_s
    finally:
        reports.close()
    return {"events": samples, "samples_ms": [1000 * one for one in taken_s], "cpu_s": cpu_s}


def _one(feed: Callable[[int], Fed], reports: Reports, running: list[Child], publisher: Clock) -> float:
    for child in running:
        child.check()
    time.sleep(random.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))
    with publisher.running():
        fed = feed(1)
    return reports.wait(START_TIMEOUT_S)[1] - fed.since


def _cpu_s(running: list[Child]) -> float:
    for child in running:
        child.check()
    return sum(child.cpu_s for child in running)


def worker(module: str) -> Command:
    """Return the command of one Dramatiq worker process with 8 threads."""
    import sys

    return (sys.executable, "-m", "dramatiq", module, "--processes", "1", "--threads", "8")
