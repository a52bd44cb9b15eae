"""Checks of the command line of run_relay, before a relay starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
from django.core.management.base import CommandError
from django.db import Error, InterfaceError, OperationalError, connections
from dramatiq.common import q_name

from outbox.brokers import EmbeddedBroker
from outbox.conf import get_settings
from outbox.errors import MissingTables, missing_schema, suggestion
from outbox.models import PausedHandler
from outbox.posix import HANGUP
from outbox.registry import registry
from relay.asking import ask_within
from relay.embedded_worker import embedded_worker
from relay.process import WorkerOf

# A database that does not answer must not keep the relays of the others from starting.
CHECK_TIMEOUT_S = 5.0


def check_probe_file(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        CommandError: with the remedy.
    """
    try:
        path.touch()
    except OSError as error:
        raise CommandError(f"--probe-file {path}: {error.strerror or error}") from error


def databases(chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the databases to serve.

    Raises:
        CommandError: with the remedy.
    """
    served = get_settings().databases
    for alias in chosen or ():
        if alias not in served:
            raise CommandError(
                f"database {alias!r} is not served by the outbox; choose from {list(served)!r}"
            )
    return tuple(chosen or served)


def check_shareable(database: str, processes: int) -> None:
    """Refuse several relays of a database without row locks.

    Raises:
        CommandError: with the remedy.
    """
    connection = connections[database]
    if not connection.features.has_select_for_update_skip_locked:
        raise CommandError(
            f"--processes {processes}: database {database!r} ({connection.vendor}) has no row locks that"
            " another relay could skip; run one relay only"
        )


def check_queue(queue: str) -> None:
    """Refuse a queue that no handler uses.

    Raises:
        CommandError: with the remedy.
    """
    # A queue of tasks is declared before the first of its tasks.
    declared = {name for name in dramatiq.get_broker().get_declared_queues() if q_name(name) == name}
    known = sorted(declared | {handler.queue for handler in registry.handlers.values()})
    if queue not in known:
        remedy = suggestion(queue, known) or f"; choose from {known!r}"
        raise CommandError(f"no handler uses the queue {queue!r}{remedy}")


def check_tables(database: str) -> None:
    """Refuse a database without the tables of the outbox.

    Raises:
        CommandError: with the remedy.
    """
    # The relay waits until the database answers. It would wait forever for tables that were never created.
    with suppress(OperationalError, InterfaceError, TimeoutError):
        try:
            ask_within(CHECK_TIMEOUT_S, database, PausedHandler.objects.using(database).names)
        except Error as error:
            if missing := missing_schema(error):
                raise CommandError(str(MissingTables(database, missing))) from error
            raise


def check_supervised(databases: Sequence[str], options: Mapping[str, Any], from_command_line: bool) -> None:
    """Refuse options that a supervisor of relays cannot have.

    Args:
        from_command_line: whether there is a command line that starts a relay again.

    Raises:
        CommandError: with the remedy.
    """
    processes = options["processes"]
    why = "--reload" if options["reload"] else f"--processes {processes}"
    if HANGUP is None:
        raise CommandError(f"{why} needs a POSIX system; leave it out, or run the relay in a container")
    if options["probe_file"]:
        raise CommandError("--probe-file cannot show the state of several processes; run one process each")
    if options["reload"] and (options["drain"] or options["once"]):
        raise CommandError("--reload is for a relay that does not end; leave out --drain and --once")
    for alias in databases if processes > 1 else ():
        check_shareable(alias, processes)
    if not from_command_line:
        raise CommandError(
            f"{why} runs this command line again, and there is none:"
            " the command was called from another program; start run_relay as a process"
        )


def worker_of(threads: int | None) -> WorkerOf | None:
    """Return what makes the worker of the relay's process, None if other processes run the handlers.

    Raises:
        CommandError: if the broker of the project requires another choice.
    """
    broker = dramatiq.get_broker()
    if isinstance(broker, EmbeddedBroker):
        if threads is None:
            raise CommandError(
                "DRAMATIQ_BROKER is EmbeddedBroker, which has no server for other processes; "
                "start the relay with --with-worker"
            )
        return partial(embedded_worker, broker, threads)
    if threads is not None:
        raise CommandError(
            f"--with-worker runs the messages of outbox.brokers.EmbeddedBroker, and DRAMATIQ_BROKER is "
            f"{type(broker).__name__}; leave it out, and start workers with rundramatiq"
        )
    return None
