"""Replay old events to the handlers that are subscribed now."""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from outbox.models import Event
from outbox.operations.chunks import Done
from outbox.operations.replay import replay_event, replay_topic

from . import _options
from ._options import add_database, clear_errors, moment, served_database
from ._progress import Progress


class Command(BaseCommand):
    """Write new deliveries for old events, in chunks of one transaction each."""

    help = (
        "Writes new deliveries of old events: for the handlers that are subscribed now, "
        "and for the receivers and actors that had a delivery of the event."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        selection = parser.add_mutually_exclusive_group(required=True)
        selection.add_argument("--event", type=UUID, metavar="UUID", help="id of the event")
        selection.add_argument(
            "--topic", metavar="PATTERN", help="events with this topic, or a pattern such as shop.*"
        )
        parser.add_argument("--since", type=moment, help="with --topic: published since 2h, or a time")
        parser.add_argument("--until", type=moment, help="with --topic: published before; now if not given")
        parser.add_argument("--handler", help="the only handler to deliver to")
        parser.add_argument("--dry-run", action="store_true", help="count the deliveries, write nothing")
        parser.add_argument(
            "--yes", action="store_true", help="ask no question, however many deliveries are written"
        )
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Replay, and report the number of new deliveries by handler."""
        if options["topic"] and not options["since"]:
            raise CommandError("--topic needs --since; give a time such as 2h or 2026-01-31T09:00")
        if options["event"] and (options["since"] or options["until"]):
            raise CommandError("--since and --until go with --topic")
        database = served_database(options["database"])
        if options["topic"] and not (options["dry_run"] or options["yes"]):
            above = _options.ASK_ABOVE
            counted = self._replay(database, {**options, "dry_run": True, "at_most": above})
            if counted.total() > above:
                _options.ask(f"more than {above:,} deliveries will be written")
        self._report(self._replay(database, options), dry_run=options["dry_run"])

    def _replay(self, database: str, options: dict[str, Any]) -> Counter[str]:
        with clear_errors(database), Progress(self.stderr._out, "events") as progress:
            return _replay(database, options, progress.add)

    def _report(self, written: Counter[str], *, dry_run: bool) -> None:
        for handler, count in sorted(written.items()):
            self.stdout.write(f"{count:>8}  {handler}")
        verb = "would be written" if dry_run else "written"
        self.stdout.write(f"{written.total()} new deliveries {verb}.")


def _replay(database: str, options: dict[str, Any], done: Done) -> Counter[str]:
    handler, dry_run = options["handler"], options["dry_run"]
    if options["topic"]:
        span = {"since": options["since"], "until": options["until"]}
        limits = {"dry_run": dry_run, "at_most": options.get("at_most")}
        return replay_topic(database, options["topic"], **span, **limits, handler=handler, done=done)
    try:
        return replay_event(database, options["event"], handler=handler, dry_run=dry_run)
    except Event.DoesNotExist as error:
        raise CommandError(str(error)) from error
