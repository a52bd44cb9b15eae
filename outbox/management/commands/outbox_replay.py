"""Deliver old events again, to the handlers of today."""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from outbox.models import Delivery, Event, NewDelivery
from outbox.publishing import delivery_to
from outbox.registry import Handler, registry
from outbox.topics import check_pattern, compile_pattern
from outbox.uuid7 import uuid7_floor
from outbox.wakeup import wake_on_commit

from ._options import add_database, clear_errors, in_chunks, moment, served_database

CHUNK = 1000


class OldEvent(NamedTuple):
    """What of an event decides who gets it."""

    id: UUID
    topic: str
    key: str


class Command(BaseCommand):
    """Write new deliveries for old events, in chunks of one transaction each."""

    help = (
        "Writes new deliveries for old events: to the handlers subscribed now, "
        "and to the receivers and actors that each event was addressed to."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--event", type=UUID, metavar="UUID", help="this event")
        which.add_argument("--topic", metavar="PATTERN", help="the events of this topic, or such as shop.*")
        parser.add_argument("--since", type=moment, help="with --topic, published since then: 2h, or a time")
        parser.add_argument(
            "--until", type=moment, help="with --topic, published before then; now if not given"
        )
        parser.add_argument("--handler", help="only to this handler")
        parser.add_argument(
            "--dry-run", action="store_true", help="only say how many deliveries would be written"
        )
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Replay, and say what went to whom."""
        if options["topic"] and not options["since"]:
            raise CommandError("--topic needs --since; give a time such as 2h or 2026-01-31T09:00")
        if options["event"] and (options["since"] or options["until"]):
            raise CommandError("--since and --until go with --topic")
        database = served_database(options["database"])
        written: Counter[str] = Counter()
        with clear_errors(database):
            only = registry.get(options["handler"]) if options["handler"] else None
            for chunk in _chosen(database, options):
                written += _replay(database, chunk, only, dry_run=options["dry_run"])
        self._report(written, dry_run=options["dry_run"])

    def _report(self, written: Counter[str], *, dry_run: bool) -> None:
        for handler, count in sorted(written.items()):
            self.stdout.write(f"{count:>8}  {handler}")
        verb = "would be written" if dry_run else "written"
        self.stdout.write(f"{written.total()} new deliveries {verb}.")


def _chosen(database: str, options: dict[str, Any]) -> Iterator[Sequence[OldEvent]]:
    events = Event.objects.using(database).values_list("id", "topic", "key")
    if options["event"]:
        found = [OldEvent(*row) for row in events.filter(pk=options["event"])]
        if not found:
            raise CommandError(f"event {options['event']} does not exist; it may have been pruned")
        return iter([found])
    check_pattern(options["topic"])
    # Bounded at the end too, so that events published by replayed handlers are not replayed in turn.
    until = options["until"] or datetime.now(UTC)
    span = events.filter(pk__gte=uuid7_floor(options["since"]), pk__lt=uuid7_floor(until)).order_by("pk")
    return _of_topic(span, options["topic"])


def _of_topic(span: Any, pattern: str) -> Iterator[Sequence[OldEvent]]:
    matches = compile_pattern(pattern).fullmatch
    # No index knows topics: each chunk is a piece of the primary key, and topics are compared here.
    chunks = in_chunks(
        lambda last: list((span.filter(pk__gt=last) if last else span)[:CHUNK]), lambda row: row[0]
    )
    for rows in chunks:
        yield [event for event in map(OldEvent._make, rows) if matches(event.topic)]


def _replay(
    database: str, events: Sequence[OldEvent], only: Handler | None, *, dry_run: bool
) -> Counter[str]:
    deliveries = Delivery.objects.using(database)
    with transaction.atomic(using=database):
        ids = [event.id for event in events]
        # Locked, so that pruning does not take the event from under its new deliveries.
        locked = (
            Event.objects.using(database).filter(pk__in=ids).order_by("pk").select_for_update(no_key=True)
        )
        there = set(ids if dry_run else locked.values_list("pk", flat=True))
        new = _new_deliveries([event for event in events if event.id in there], deliveries, only)
        if not dry_run:
            deliveries.replay(new)
            wake_on_commit(database)
    return Counter(delivery.handler for _event_id, _key, delivery in new)


def _new_deliveries(
    events: Sequence[OldEvent], deliveries: Any, only: Handler | None
) -> list[tuple[UUID, str, NewDelivery]]:
    addressed = _addressed(events, deliveries)
    return [
        (event.id, event.key, delivery_to(handler))
        for event in events
        for handler in dict.fromkeys([*registry.subscribed_to(event.topic), *addressed[event.id]])
        if only is None or handler is only
    ]


def _addressed(events: Sequence[OldEvent], deliveries: Any) -> dict[UUID, list[Handler]]:
    """Return the receivers and actors of each event: only its deliveries tell who they were."""
    by_name = {name: handler for name, handler in registry.handlers.items() if handler.kind != "event"}
    addressed: dict[UUID, list[Handler]] = defaultdict(list)
    before = deliveries.filter(event_id__in=[event.id for event in events]).order_by("pk")
    for event_id, name in before.values_list("event_id", "handler"):
        if name in by_name:
            addressed[event_id].append(by_name[name])
    return addressed
