"""A relay process: one relay per database, until a stop or until no delivery is due."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from outbox.conf import get_settings
from outbox.models import Delivery
from outbox.own_connection import own_connection
from relay.supervision.parent_pipe import stop_with_supervisor

from .asking import ask_within
from .embedded_worker import EmbeddedWorker
from .loop import Relay
from .probe_file import ProbeFile
from .relay_options import RelayOptions
from .stop_limit import STOP_MARGIN_S, ends_within
from .stopping import Stop, on_signals, on_signals_of_child

logger = logging.getLogger(__name__)

# Allocations, less deallocations, before the garbage collector searches the youngest objects for cycles.
# Python's default is 700.
COLLECT_AFTER = 50_000

# A progress bar is not worth a longer wait.
COUNT_TIMEOUT_S = 5.0

WorkerOf = Callable[[Sequence[str]], AbstractContextManager[EmbeddedWorker]]


def run_relays(
    databases: Sequence[str],
    *,
    parent_pipe: int | None = None,
    probe_file: Path | None = None,
    worker: WorkerOf | None = None,
    **options: Any,
) -> None:
    """Run one relay per database; return when all have ended.

    Args:
        parent_pipe: the child's descriptor of the supervisor's pipe, None without a supervisor.
        probe_file: a file that is touched while no relay hangs, None for no file.
        worker: makes the worker that runs the handlers in this process, None if other processes run them.
        options: of `RelayOptions`.

    Raises:
        OSError: if the probe file cannot be written.
    """
    probe = ProbeFile(probe_file, databases) if probe_file else None
    stop_limit_s = get_settings().dispatch_timeout.total_seconds() + STOP_MARGIN_S
    with (
        Stop() as stop,
        _stopped_by_signals(stop, parent_pipe),
        # It waits for running handlers, and so may end later than the relays.
        worker(databases) if worker else nullcontext() as running,
        ends_within(stop_limit_s, stop),
        _rare_garbage_collection(),
    ):
        relays = [
            Relay(_options(database, probe, worker=running, **options), stop=stop) for database in databases
        ]
        _run(relays, stop)
    if probe is not None:
        probe.remove()


def _options(database: str, probe: ProbeFile | None, **options: Any) -> RelayOptions:
    if probe is not None:
        options["alive"] = probe.reporter(database)
    return RelayOptions(database=database, **options)


def count_due(databases: Sequence[str], queues: Sequence[str]) -> int:
    """Count the backlog once, without the databases that do not answer."""
    return sum(_count_due(alias, queues) for alias in databases)


def _count_due(database: str, queues: Sequence[str]) -> int:
    """Count the backlog once, from the partial index of due deliveries; 0 if the database does not answer."""
    try:
        return ask_within(COUNT_TIMEOUT_S, database, Delivery.objects.using(database).due(queues).count)
    except (OperationalError, InterfaceError, TimeoutError) as error:
        logger.warning("the backlog of database %r is unknown: %s", database, str(error).strip())
        return 0
    finally:
        connections[database].close()


@contextmanager
def _stopped_by_signals(stop: Stop, parent_pipe: int | None) -> Generator[None]:
    if parent_pipe is None:
        with on_signals(stop):
            yield
        return
    with on_signals_of_child(stop):
        stop_with_supervisor(parent_pipe, stop)
        yield


@contextmanager
def _rare_garbage_collection() -> Generator[None]:
    """Search rarely for reference cycles, and not among the objects that were imported before.

    A batch makes thousands of objects, and reference counting frees them after the batch. The search for
    cycles among them took a fifth of a busy relay's CPU time.
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
        _run_one(relays[0])
        return
    with ThreadPoolExecutor(len(relays)) as pool:
        futures = [pool.submit(_run_one, relay) for relay in relays]
        # A relay that fails stops the others: a process with only some of its relays must not look complete.
        wait(futures, return_when=FIRST_EXCEPTION)
        if any(future.done() and future.exception() for future in futures):
            stop.request()
    for future in futures:
        future.result()


def _run_one(relay: Relay) -> None:
    with own_connection(relay.options.database):
        relay.run()
