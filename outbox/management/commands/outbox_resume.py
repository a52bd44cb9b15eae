"""Resume paused handlers."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox.errors import UnknownHandler
from outbox.models import PausedHandler
from outbox.publishing.notify import wake
from outbox.registry import registry

from ._options import add_database, clear_errors, served_database


class Command(BaseCommand):
    """Make the waiting deliveries of paused handlers due, in chunks of one statement each."""

    help = "Resumes a paused handler: its waiting deliveries become due."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("handler", nargs="?", metavar="HANDLER", help="name of the handler")
        parser.add_argument("--all", action="store_true", help="all paused handlers")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Resume, and report each handler."""
        name: str | None = options["handler"]
        if bool(name) == options["all"]:
            raise CommandError("give the name of a handler, or --all")
        database = served_database(options["database"])
        paused = PausedHandler.objects.using(database)
        with clear_errors(database):
            paused.rename(registry.former_names())
            names = [_known(name, paused.names())] if name else sorted(paused.names())
            for each in names:
                # A relay may have put deliveries to wait during an earlier resume, so this also runs for a
                # handler that is not paused.
                resumed = paused.resume(each)
                paused.finish_resuming(each)
                self.stdout.write(f"{each} is resumed." if resumed else f"{each} was not paused.")
            wake(database)
        if not names:
            self.stdout.write("No handler is paused.")


def _known(name: str, paused: Iterable[str]) -> str:
    # The code may no longer contain a paused handler.
    known = {*registry.handlers, *paused}
    if name in known:
        return name
    if registry.find(name) is None:
        raise UnknownHandler(name, known)
    return registry.name_of(name)
