"""Delete what is past its retention, now instead of little by little by the relay."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.pruning import count_prunable, prune

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Prune in chunks of one short transaction each; it may be interrupted at any time."""

    help = "Deletes events past RETENTION with their deliveries; unfinished and recently failed ones stay."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--dry-run", action="store_true", help="only say how many events would go")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Prune, and say how much."""
        database = served_database(options["database"])
        with clear_errors(database):
            if options["dry_run"]:
                self.stdout.write(f"{count_prunable(database)} events would be deleted.")
            else:
                self.stdout.write(f"{prune(database)} events deleted.")
