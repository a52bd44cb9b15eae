"""A relay process: one relay per database, until they are asked to stop or have nothing left to do."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from django.db import connections

from outbox.models import Delivery

from .lifeline import stop_with_supervisor
from .loop import Relay, RelayOptions
from .progress import Progress
from .stopping import Stop, on_signals, on_signals_of_child

logger = logging.getLogger(__name__)

# Objects made beyond those freed, before the youngest are looked through for cycles; Python has 700.
COLLECT_AFTER = 50_000


def run_relays(
    databases: Sequence[str], *, progress_to: Any = None, lifeline: int | None = None, **options: Any
) -> None:
    """Run one relay per database; return when all have ended.

    Args:
        progress_to: a terminal for the progress bar of a drain, None for no bar.
        lifeline: what a supervisor handed down, None if there is none.
        options: of `RelayOptions`.
    """
    bar = _progress(databases, progress_to, options)
    progress = bar.advance if bar else None
    with Stop() as stop, _listening(stop, lifeline), _collecting_rarely():
        relays = [
            Relay(RelayOptions(database=database, progress=progress, **options), stop=stop)
            for database in databases
        ]
        logger.info("relay started for %s", ", ".join(databases))
        _run(relays, stop)
    if bar is not None:
        bar.finish()
    logger.info("relay stopped")


@contextmanager
def _listening(stop: Stop, lifeline: int | None) -> Generator[None]:
    if lifeline is None:
        with on_signals(stop):
            yield
        return
    with on_signals_of_child(stop):
        stop_with_supervisor(lifeline, stop)
        yield


@contextmanager
def _collecting_rarely() -> Generator[None]:
    """Look for reference cycles rarely, and not among what has been imported by now.

    A batch makes thousands of objects that go by themselves when it is done. To look through them for cycles,
    again and again while it lasts, took a fifth of a busy relay's CPU time.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _run(relays: Sequence[Relay], stop: Stop) -> None:
    if len(relays) == 1:
        relays[0].run()
        return
    with ThreadPoolExecutor(len(relays)) as pool:
        futures = [pool.submit(relay.run) for relay in relays]
        # One that broke takes the others with it: half a relay must not look like a whole one.
        wait(futures, return_when=FIRST_EXCEPTION)
        if any(future.done() and future.exception() for future in futures):
            stop.request()
    for future in futures:
        future.result()


def _progress(databases: Sequence[str], terminal: Any, options: dict[str, Any]) -> Progress | None:
    if terminal is None or not options.get("drain"):
        return None
    # Counts the backlog once, from the partial index of what is due.
    total = sum(Delivery.objects.using(alias).due(options.get("queues", ())).count() for alias in databases)
    for alias in databases:
        connections[alias].close()
    return Progress(total, terminal)
