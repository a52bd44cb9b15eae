"""Run a relay: claim committed deliveries and dispatch them to Dramatiq."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from outbox.durations import LONGEST
from relay.owner_lock import OwnedElsewhere
from relay.process import WorkerOf, count_due, run_relays
from relay.supervision import parent_pipe
from relay.supervision.child import own_command
from relay.supervision.reloader import FileChanges, Reloader, project_files
from relay.supervision.supervisor import Supervisor

from . import _relay_checks
from ._console import log_to_console, show_batches
from ._progress import Progress

LAST_PORT = 65535
# The threads of a worker process of Dramatiq's command line.
DEFAULT_THREADS = 8


def positive_int(text: str) -> int:
    """Parse a number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a positive number; give 1 or more")
    return int(text)


def seconds(text: str) -> timedelta:
    """Parse a positive number of seconds."""
    try:
        duration = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds; give one such as 0.5") from None
    if duration <= timedelta():
        raise ArgumentTypeError(f"{text!r} is not a positive number of seconds; give one such as 0.5")
    if duration > LONGEST:
        raise ArgumentTypeError(f"{text!r} is too long; give at most {LONGEST.total_seconds():.0f} seconds")
    return duration


def address(text: str) -> tuple[str, int]:
    """Parse `PORT` or `HOST:PORT`; an IPv6 address has brackets."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > LAST_PORT:
        raise ArgumentTypeError(f"{text!r} is not an address; give one such as 9108 or 0.0.0.0:9108")
    return host.strip("[]") or "127.0.0.1", int(port)


class Command(BaseCommand):
    """Start a relay, or a supervisor of several relays."""

    help = "Dispatches committed outbox deliveries to Dramatiq. SIGTERM and SIGINT finish the current batch."
    from_command_line = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options; the OUTBOX setting has the defaults."""
        parser.add_argument("--database", action="append", help="serve this alias only (may be repeated)")
        parser.add_argument("--batch-size", type=positive_int, help="deliveries per transaction")
        parser.add_argument(
            "--poll-interval", type=seconds, metavar="SECONDS", help="longest wait between two scans"
        )
        parser.add_argument(
            "--processes",
            type=positive_int,
            default=1,
            metavar="N",
            help="number of relays, under a supervisor",
        )
        parser.add_argument("--queues", nargs="+", default=(), help="only deliveries to these queues")
        parser.add_argument("--drain", action="store_true", help="end when nothing is due")
        parser.add_argument("--once", action="store_true", help="dispatch one batch and end")
        parser.add_argument(
            "--with-worker",
            type=positive_int,
            nargs="?",
            const=DEFAULT_THREADS,
            metavar="THREADS",
            help=f"run the handlers in this process, for EmbeddedBroker (default: {DEFAULT_THREADS} threads)",
        )
        parser.add_argument(
            "--reload", action="store_true", help="start again when the code changes, for development"
        )
        parser.add_argument("--no-listen", action="store_true", help="poll only, without LISTEN")
        parser.add_argument(
            "--probe-file", type=Path, metavar="PATH", help="touch this file while no relay hangs"
        )
        parser.add_argument(
            "--metrics",
            type=address,
            metavar="[HOST:]PORT",
            help="serve /metrics, /live and /ready; on localhost without a host",
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """Record that there is a command line, with which child processes can be started."""
        self.from_command_line = True
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one relay for each database and process until a signal arrives."""
        databases = _relay_checks.databases(options["database"])
        for queue in options["queues"]:
            _relay_checks.check_queue(queue)
        worker = _relay_checks.worker_of(options["with_worker"])
        for alias in databases:
            _relay_checks.check_tables(alias)
        if options["probe_file"]:
            _relay_checks.check_probe_file(options["probe_file"])
        if self.from_command_line:
            log_to_console()
        if options["verbosity"] > 1:
            show_batches(self.stdout)
        descriptor = parent_pipe.inherited()
        if descriptor is not None:
            self._relay(databases, options, worker, descriptor)
            return
        with self._metrics_server(options["metrics"]):
            if options["processes"] == 1 and not options["reload"]:
                threads = options["with_worker"]
                self._announce(databases, f", with {threads} worker threads" if threads else "")
                self._relay(databases, options, worker)
            else:
                self._supervise(databases, options)

    def _announce(self, databases: Sequence[str], how: str = "") -> None:
        self.stdout.write(f"Relaying for {', '.join(databases)}{how}; stop with SIGTERM or Ctrl-C.")
        self.stdout.flush()

    @contextmanager
    def _metrics_server(self, listen: tuple[str, int] | None) -> Generator[None]:
        if listen is None:
            yield
            return
        try:
            from outbox.contrib.prometheus import MetricsServer
        except ModuleNotFoundError as error:
            remedy = "install django-dramatiq-outbox[prometheus]"
            raise CommandError(f"--metrics needs the package {error.name!r}; {remedy}") from error
        host, port = listen
        try:
            server = MetricsServer(host, port)
        except OSError as error:
            raise CommandError(f"--metrics {host}:{port}: {error.strerror or error}") from error
        with server:
            self.stdout.write(f"Serving /metrics, /live and /ready on {host}:{server.port}.")
            yield

    def _supervise(self, databases: Sequence[str], options: dict[str, Any]) -> None:
        processes, reload = options["processes"], options["reload"]
        _relay_checks.check_supervised(databases, options, self.from_command_line)
        many = f" in {processes} processes" if processes > 1 else ""
        self._announce(databases, many + (", again after each change of the code" if reload else ""))
        connections.close_all()
        supervisor: Supervisor
        if reload:
            changes = FileChanges(project_files())
            supervisor = Reloader(own_command(), processes=processes, changes=changes)
        else:
            ends = options["drain"] or options["once"]
            supervisor = Supervisor(own_command(), processes=processes, restart=not ends)
        if status := supervisor.run():
            sys.exit(status)

    def _relay(
        self,
        databases: Sequence[str],
        options: dict[str, Any],
        worker: WorkerOf | None,
        descriptor: int | None = None,
    ) -> None:
        # The progress bars of several processes would overwrite each other.
        has_bar = options["drain"] and descriptor is None and self.stderr.isatty()
        total = count_due(databases, options["queues"]) if has_bar else 0
        bar = Progress(self.stderr._out, "deliveries", total=total) if has_bar else None
        try:
            with bar or nullcontext():
                run_relays(
                    databases,
                    progress=bar.add if bar else None,
                    parent_pipe=descriptor,
                    batch_size=options["batch_size"],
                    poll_interval=options["poll_interval"],
                    queues=tuple(options["queues"]),
                    listen=not options["no_listen"],
                    once=options["once"],
                    drain=options["drain"],
                    probe_file=options["probe_file"],
                    worker=worker,
                )
        except OwnedElsewhere as problem:
            raise CommandError(f"{problem}; run one process only, or use PostgreSQL") from problem
