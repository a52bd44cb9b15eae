"""Throughput and idle latency from the commit to the end of the handler, measured alike for all ways."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from .processes import Child, Reports, children
from .protocol import Answer, Clock

WARM_UP_EVENTS = 100
COLD_SAMPLES = 5
# Enough time for processes to start and connect.
START_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 240.0
POLL_INTERVAL_S = 0.005
# The pause between two events, so that all processes are idle.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.12, 0.2
# Of each worker.
THREADS = 8
# Redis gives the messages of a dead worker back after this time.
HEARTBEAT_TIMEOUT_S = 5.0

Command = tuple[str, ...]


class Fed(NamedTuple):
    """The times of feeding events.

    Args:
        since: the time of the commit, or of the first send if there is no commit, on the monotonic clock.
        cpu_s: the CPU time of the feeding process, if no relay transports the events to the worker.
    """

    since: float
    cpu_s: float = 0.0


def end_to_end(
    *commands: Command,
    feed: Callable[[int], Fed],
    events: int,
    settle: Callable[[], object] = lambda: None,
    warm_up: int = WARM_UP_EVENTS,
    pause_s: float = 0.0,
) -> Answer:
    """Feed running processes, and measure until all events are handled, and confirmed if they can be.

    Args:
        pause_s: how long each handler runs in addition.
    """
    reports = Reports(f"{warm_up},{warm_up + events}")
    try:
        with children(*commands, env=reports.env | {"BENCH_PAUSE_S": str(pause_s)}) as running:
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
    """Feed running relays, and measure until the table has no work left."""
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
    """Poll until a condition is true.

    Raises:
        TimeoutError: after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{done.__name__} was not true within {timeout_s:g} s")
        time.sleep(POLL_INTERVAL_S)


def latency(*commands: Command, feed: Callable[[int], Fed], samples: int, rate: float = 0.0) -> Answer:
    """Publish one event at a time; measure from the commit to the handler.

    The CPU time is that of the publisher while it publishes, and that of the other processes all the time.

    Args:
        rate: the events per second; 0 to publish each event to idle processes.
    """
    reports, publisher = Reports("all"), Clock()
    try:
        with children(*commands, env=reports.env) as running:
            # The first events find cold connections.
            for _ in range(COLD_SAMPLES):
                _one(feed, reports, running, Clock())
            before = _cpu_s(running)
            if rate:
                taken_s = _at_a_rate(feed, reports, publisher, samples, rate)
            else:
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


def _at_a_rate(
    feed: Callable[[int], Fed], reports: Reports, publisher: Clock, samples: int, rate: float
) -> list[float]:
    """Publish at a rate, however long the events take; the nth commit belongs to the nth handled event."""
    began, since = time.monotonic(), []
    for number in range(samples):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        with publisher.running():
            since.append(feed(1).since)
    return [reports.wait(START_TIMEOUT_S)[1] - moment for moment in since]


def recovery(
    worker: Command, *others: Command, clear: Callable[[], object], feed: Callable[[int], Fed], samples: int
) -> Answer:
    """Kill a worker whose threads all run an event; measure until a new worker has run these events."""
    taken_s = []
    for _ in range(samples):
        clear()
        reports = Reports("all")
        env = reports.env | {"BENCH_HEARTBEAT_TIMEOUT_MS": str(int(1000 * HEARTBEAT_TIMEOUT_S))}
        try:
            with (
                children(*others, env=env),
                children(worker, env=env | {"BENCH_PAUSE_S": str(FINISH_TIMEOUT_S)}) as (doomed,),
            ):
                feed(THREADS)
                _wait_for(reports, THREADS)
                doomed.kill()
                killed = time.monotonic()
                with children(worker, env=env):
                    taken_s.append(_wait_for(reports, THREADS) - killed)
        finally:
            reports.close()
    return {"events": samples, "samples_ms": [1000 * one for one in taken_s]}


def _wait_for(reports: Reports, events: int) -> float:
    """Wait for handled events; return the time of the last one."""
    return max([reports.wait(START_TIMEOUT_S)[1] for _ in range(events)])


def _cpu_s(running: list[Child]) -> float:
    for child in running:
        child.check()
    return sum(child.cpu_s for child in running)


def worker(module: str) -> Command:
    """Return the command of one Dramatiq worker process with 8 threads."""
    import sys

    return (sys.executable, "-m", "dramatiq", module, "--processes", "1", "--threads", str(THREADS))
