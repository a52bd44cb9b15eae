"""Pause a handler."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from outbox.models import PausedHandler
from outbox.registry import registry

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Record that a handler is paused; relays read the record in each round."""

    help = "Pauses a handler: its deliveries wait in the table until outbox_resume."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("handler", metavar="HANDLER", help="name of the handler")
        parser.add_argument("--reason", default="", help="reason; outbox_status and the admin show it")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Pause the handler if it is not paused yet."""
        database = served_database(options["database"])
        with clear_errors(database):
            name = registry.get(options["handler"]).name
            paused = PausedHandler.objects.using(database)
            if paused.pause(name, options["reason"]):
                self.stdout.write(f"{name} is paused; deliveries that are already dispatched still run.")
                return
            row = paused.filter(pk=name).first()
        since = (
            f"since {row.paused_at:%Y-%m-%d %H:%M:%S %Z}: {row.reason or 'no reason given'}" if row else ""
        )
        self.stdout.write(f"{name} was already paused {since}".strip())
