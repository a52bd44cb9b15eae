"""Resume paused handlers."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox.errors import UnknownHandler
from outbox.models import PausedHandler
from outbox.registry import registry
from outbox.wakeup import wake

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Let the deliveries of paused handlers go, in chunks of one statement each."""

    help = "Lets the deliveries of a paused handler go again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("handler", nargs="?", metavar="HANDLER", help="its name")
        parser.add_argument("--all", action="store_true", help="all paused handlers")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Resume, and say whom."""
        name: str | None = options["handler"]
        if bool(name) == options["all"]:
            raise CommandError("give the name of a handler, or --all")
        database = served_database(options["database"])
        paused = PausedHandler.objects.using(database)
        with clear_errors(database):
            names = [_known(name, paused.names())] if name else sorted(paused.names())
            for each in names:
                # Also if it is not paused: a relay may have held deliveries at the moment of the last resume.
                resumed = paused.resume(each)
                self.stdout.write(f"{each} goes on." if resumed else f"{each} was not paused.")
            wake(database)
        if not names:
            self.stdout.write("No handler is paused.")


def _known(name: str, paused: Iterable[str]) -> str:
    # A paused handler may be gone from the code by now.
    known = {*registry.handlers, *paused}
    if name not in known:
        raise UnknownHandler(name, known)
    return name
