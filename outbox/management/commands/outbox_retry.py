"""Retry failed deliveries."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox.models import Delivery
from outbox.registry import registry
from outbox.topics import check_pattern, compile_pattern
from outbox.wakeup import wake

from ._options import add_database, clear_errors, in_chunks, moment, served_database

CHUNK = 1000


class Command(BaseCommand):
    """Send failed deliveries back to pending, in chunks of one statement each."""

    help = "Retries failed deliveries: those with the given ids, or those that meet all the given options."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("ids", nargs="*", type=int, metavar="ID", help="ids of deliveries")
        parser.add_argument("--handler", help="only those of this handler")
        parser.add_argument("--topic", metavar="PATTERN", help="only those of this topic, or such as shop.*")
        parser.add_argument("--since", type=moment, help="only those that failed since then: 2h, or a time")
        parser.add_argument("--all", action="store_true", help="all failed deliveries")
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Retry, and say how many."""
        ids, handler, topic, since = (options[name] for name in ("ids", "handler", "topic", "since"))
        narrowed = bool(handler or topic or since)
        if options["all"] + narrowed + bool(ids) != 1:
            raise CommandError(
                "give ids, or --handler, --topic and --since, or --all: exactly one of these kinds"
            )
        database = served_database(options["database"])
        with clear_errors(database):
            chosen = _by_ids(database, ids) if ids else _by_options(database, handler, topic, since)
            retried = sum(_retry(database, chunk) for chunk in chosen)
        self.stdout.write(f"{retried} failed deliveries will be sent again.")
        if ids and retried < len(set(ids)):
            self.stderr.write(f"{len(set(ids)) - retried} of the given ids are not of failed deliveries.")


def _by_ids(database: str, ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _by_options(
    database: str, handler: str | None, topic: str | None, since: datetime | None
) -> Iterator[Sequence[int]]:
    failed = Delivery.objects.using(database).failed().order_by("pk")
    if handler:
        failed = failed.filter(handler=registry.get(handler).name)
    if since:
        failed = failed.filter(finished_at__gte=since)
    if topic:
        check_pattern(topic)
        failed = failed.filter(event__topic__regex=f"^{compile_pattern(topic).pattern}$")
    ids = failed.values_list("pk", flat=True)
    # By id, so that a delivery that fails again meanwhile is not retried without end.
    return in_chunks(lambda last: list((ids.filter(pk__gt=last) if last else ids)[:CHUNK]), lambda pk: pk)


def _retry(database: str, pks: Sequence[int]) -> int:
    retried: int = Delivery.objects.using(database).filter(pk__in=pks).retry()
    wake(database)
    return retried
