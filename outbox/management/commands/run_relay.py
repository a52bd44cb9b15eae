"""Run a relay: take committed deliveries from the table and send them to Dramatiq."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, InterfaceError, OperationalError

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

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options; what is not given comes from the OUTBOX setting."""
        parser.add_argument("--database", action="append", help="serve this alias only (may be repeated)")
        parser.add_argument("--batch-size", type=positive_int, help="deliveries per transaction")
        parser.add_argument(
            "--poll-interval", type=seconds, metavar="SECONDS", help="longest wait between looks"
        )
        parser.add_argument("--queues", nargs="+", default=(), help="only deliveries to these queues")
        parser.add_argument("--drain", action="store_true", help="end when nothing is due")
        parser.add_argument("--once", action="store_true", help="dispatch one batch and end")
        parser.add_argument("--no-listen", action="store_true", help="poll only, without LISTEN")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one relay per database until a signal comes."""
        from relay.process import run_relays

        served = get_settings().databases
        databases = tuple(options["database"] or served)
        for alias in databases:
            if alias not in served:
                raise CommandError(
                    f"database {alias!r} is not served by the outbox; choose from {list(served)!r}"
                )
        for queue in options["queues"]:
            _check_queue(queue)
        for alias in databases:
            _check_tables(alias)
        self.stdout.write(f"Relaying for {', '.join(databases)}; SIGTERM or Ctrl-C ends it.")
        self.stdout.flush()
        run_relays(
            databases,
            progress_to=self.stderr._out if self.stderr.isatty() else None,
            batch_size=options["batch_size"],
            poll_interval=options["poll_interval"],
            queues=tuple(options["queues"]),
            listen=not options["no_listen"],
            once=options["once"],
            drain=options["drain"],
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
