"""Discard failed deliveries."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.models import Delivery
from outbox.operations.retry import discard_ids, discard_matching, failed_matching

from ._options import add_failed_filters, ask_before, clear_errors, failed_filters, served_database
from ._progress import Progress


class Command(BaseCommand):
    """Discard failed deliveries, in chunks of one short transaction each."""

    help = (
        "Discards failed deliveries: the given ids, or all failed deliveries that match every given option."
        " They are never dispatched again, and unblock their ordering keys."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_failed_filters(parser, "ids of failed deliveries")
        parser.add_argument("--reason", required=True, help="stored with each delivery")

    def handle(self, *args: Any, **options: Any) -> None:
        """Discard, and report the number of deliveries."""
        filters, ids = failed_filters(options), options["ids"]
        database = served_database(options["database"])
        with clear_errors(database):
            failed = Delivery.objects.using(database).failed()
            rows = failed.filter(pk__in=ids) if ids else failed_matching(database, **filters)
            if options["dry_run"]:
                self.stdout.write(f"{rows.count()} failed deliveries would be discarded.")
                return
            ask_before("discarded", rows, yes=options["yes"])
            if ids:
                discarded = discard_ids(database, ids, options["reason"])
            else:
                with Progress(self.stderr._out, "deliveries") as progress:
                    discarded = discard_matching(database, options["reason"], done=progress.add, **filters)
        self.stdout.write(f"{discarded} failed deliveries were discarded.")
        if ids and (others := len(set(ids)) - discarded):
            self.stderr.write(f"{others} of the given ids are not failed.")
