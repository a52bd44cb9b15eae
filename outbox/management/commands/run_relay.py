"""Run a relay: take committed deliveries from the table and send them to Dramatiq."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, InterfaceError, OperationalError, connections

from outbox.conf import get_settings
from outbox.errors import suggestion
from outbox.models import PausedHandler
from outbox.registry import registry

from ._options import lacks_tables


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
    return duration


class Command(BaseCommand):
    """Hand over to the relay package."""

    help = "Sends committed outbox deliveries to Dramatiq. SIGTERM and SIGINT finish the batch in hand."
    from_command_line = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options; what is not given comes from the OUTBOX setting."""
        parser.add_argument("--database", action="append", help="serve this alias only (may be repeated)")
        parser.add_argument("--batch-size", type=positive_int, help="deliveries per transaction")
        parser.add_argument(
            "--poll-interval", type=seconds, metavar="SECONDS", help="longest wait between looks"
        )
        parser.add_argument(
            "--processes", type=positive_int, default=1, metavar="N", help="run so many relays, supervised"
        )
        parser.add_argument("--queues", nargs="+", default=(), help="only deliveries to these queues")
        parser.add_argument("--drain", action="store_true", help="end when nothing is due")
        parser.add_argument("--once", action="store_true", help="dispatch one batch and end")
        parser.add_argument("--no-listen", action="store_true", help="poll only, without LISTEN")

    def run_from_argv(self, argv: list[str]) -> None:
        """Remember that there is a command line, which children can be started with."""
        self.from_command_line = True
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one relay per database and process until a signal comes."""
        from relay import lifeline

        databases = _databases(options["database"])
        for queue in options["queues"]:
            _check_queue(queue)
        for alias in databases:
            _check_tables(alias)
        descriptor = lifeline.inherited()
        if descriptor is not None:
            self._relay(databases, options, descriptor)
        elif options["processes"] == 1:
            self._announce(databases)
            self._relay(databases, options)
        else:
            self._supervise(databases, options)

    def _announce(self, databases: Sequence[str], how: str = "") -> None:
        self.stdout.write(f"Relaying for {', '.join(databases)}{how}; SIGTERM or Ctrl-C ends it.")
        self.stdout.flush()

    def _supervise(self, databases: Sequence[str], options: dict[str, Any]) -> None:
        from relay.child import own_command
        from relay.supervisor import Supervisor

        processes = options["processes"]
        for alias in databases:
            _check_shareable(alias, processes)
        if not self.from_command_line:
            raise CommandError(
                f"--processes {processes} runs this command line again, and there is none:"
                " another program called run_relay; start it as a process of its own"
            )
        self._announce(databases, f" in {processes} processes")
        connections.close_all()
        ends = options["drain"] or options["once"]
        supervisor = Supervisor(own_command(), processes=processes, restart=not ends)
        if status := supervisor.run():
            sys.exit(status)

    def _relay(
        self, databases: Sequence[str], options: dict[str, Any], descriptor: int | None = None
    ) -> None:
        from relay.process import run_relays

        alone = descriptor is None
        run_relays(
            databases,
            # The bars of several processes would overwrite each other.
            progress_to=self.stderr._out if alone and self.stderr.isatty() else None,
            lifeline=descriptor,
            batch_size=options["batch_size"],
            poll_interval=options["poll_interval"],
            queues=tuple(options["queues"]),
            listen=not options["no_listen"],
            once=options["once"],
            drain=options["drain"],
        )


def _databases(chosen: Sequence[str] | None) -> tuple[str, ...]:
    served = get_settings().databases
    for alias in chosen or ():
        if alias not in served:
            raise CommandError(
                f"database {alias!r} is not served by the outbox; choose from {list(served)!r}"
            )
    return tuple(chosen or served)


def _check_shareable(database: str, processes: int) -> None:
    connection = connections[database]
    if not connection.features.has_select_for_update_skip_locked:
        raise CommandError(
            f"--processes {processes}: database {database!r} ({connection.vendor}) has no row locks that"
            " one relay could pass over while another holds them; run one relay only"
        )


def _check_queue(queue: str) -> None:
    known = sorted({handler.queue for handler in registry.handlers.values()})
    if queue not in known:
        remedy = suggestion(queue, known) or f"; choose from {known!r}"
        raise CommandError(f"no handler uses the queue {queue!r}{remedy}")


def _check_tables(database: str) -> None:
    # A database that is away is the relay's to wait for; one without the tables would be waited for in vain.
    with suppress(OperationalError, InterfaceError):
        try:
            PausedHandler.objects.using(database).names()
        except Error as error:
            if lacks_tables(error):
                remedy = f"run manage.py migrate --database {database}"
                raise CommandError(f"database {database!r} lacks the outbox's tables; {remedy}") from error
            raise
