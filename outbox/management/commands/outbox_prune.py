"""Prune events past their retention at once; relays prune them in small steps."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.operations.pruning import count_prunable, prune

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Prune in chunks of one short transaction each; an interruption loses nothing."""

    help = (
        "Deletes events past RETENTION with their deliveries;"
        " events with unfinished or recently failed deliveries stay."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--dry-run", action="store_true", help="count the events, delete nothing")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Prune, and report the number of events."""
        database = served_database(options["database"])
        with clear_errors(database):
            if options["dry_run"]:
                self.stdout.write(f"{count_prunable(database)} events would be deleted.")
            else:
                self.stdout.write(f"{prune(database)} events deleted.")
