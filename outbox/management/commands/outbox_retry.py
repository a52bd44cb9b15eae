"""Retry failed deliveries, and resend unconfirmed ones."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.operations.retry import Retried, failed_matching, retry_ids, retry_matching, retryable

from ._options import add_failed_filters, ask_before, clear_errors, failed_filters, served_database
from ._progress import Progress


class Command(BaseCommand):
    """Return deliveries to pending, in chunks of one short transaction each."""

    help = (
        "Retries failed deliveries: the given ids, or all failed deliveries that match every given option."
        " Unconfirmed deliveries are resent if their ids are given."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_failed_filters(parser, "ids of failed or unconfirmed deliveries")

    def handle(self, *args: Any, **options: Any) -> None:
        """Retry, and report the number of deliveries."""
        filters, ids = failed_filters(options), options["ids"]
        database = served_database(options["database"])
        with clear_errors(database):
            rows = retryable(database, ids) if ids else failed_matching(database, **filters)
            if options["dry_run"]:
                self.stdout.write(f"{rows.count()} deliveries would be resent.")
                return
            ask_before("resent", rows, yes=options["yes"])
            if ids:
                self._report(retry_ids(database, ids), len(set(ids)))
                return
            with Progress(self.stderr._out, "deliveries") as progress:
                retried = retry_matching(database, done=progress.add, **filters)
        self.stdout.write(f"{retried} failed deliveries will be resent.")

    def _report(self, retried: Retried, given: int) -> None:
        unconfirmed = f" and {retried.unconfirmed} unconfirmed" if retried.unconfirmed else ""
        self.stdout.write(f"{retried.failed} failed{unconfirmed} deliveries will be resent.")
        if unconfirmed:
            self.stderr.write("An unconfirmed delivery runs twice if its earlier message still arrives.")
        if retried.running:
            self.stderr.write(f"{retried.running} of the given ids run just now and are not resent.")
        if others := given - sum(retried):
            self.stderr.write(f"{others} of the given ids are neither failed nor unconfirmed.")
