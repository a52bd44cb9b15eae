"""Pause a handler."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.models import PausedHandler
from outbox.registry import registry

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Note that a handler is paused; relays read that in each round."""

    help = "Keeps a handler's deliveries from being dispatched, until outbox_resume. They wait in the table."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("handler", metavar="HANDLER", help="its name")
        parser.add_argument("--reason", default="", help="why, for those who wonder")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Pause, unless it is."""
        database = served_database(options["database"])
        with clear_errors(database):
            name = registry.get(options["handler"]).name
            paused = PausedHandler.objects.using(database)
            if paused.pause(name, options["reason"]):
                self.stdout.write(f"{name} is paused; what was dispatched before still runs.")
                return
            row = paused.filter(pk=name).first()
        since = (
            f"since {row.paused_at:%Y-%m-%d %H:%M:%S %Z}: {row.reason or 'no reason given'}" if row else ""
        )
        self.stdout.write(f"{name} was paused already {since}".strip())
