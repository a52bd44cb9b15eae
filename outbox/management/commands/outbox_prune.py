"""Prune events past their retention at once; relays prune them in small steps."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.operations.pruning import count_prunable, prune

from . import _options
from ._options import add_database, clear_errors, served_database
from ._progress import Progress


class Command(BaseCommand):
    """Prune in chunks of one short transaction each; an interruption loses nothing."""

    help = (
        "Deletes events past RETENTION with their deliveries;"
        " events with unfinished or recently failed deliveries stay."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--dry-run", action="store_true", help="count the events, delete nothing")
        parser.add_argument("--yes", action="store_true", help="ask no question, however many events match")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Prune, and report the number of events."""
        database = served_database(options["database"])
        with clear_errors(database):
            if options["dry_run"]:
                self.stdout.write(f"{count_prunable(database)} events would be deleted.")
                return
            # A cron job deletes what RETENTION allows, and nobody can be asked there.
            above = _options.ASK_ABOVE
            asks = sys.stdin.isatty() and not options["yes"]
            if asks and count_prunable(database, at_most=above) > above:
                _options.ask(f"more than {above:,} events will be deleted")
            with Progress(self.stderr._out, "events") as progress:
                deleted = prune(database, done=progress.add)
        self.stdout.write(f"{deleted} events deleted.")
