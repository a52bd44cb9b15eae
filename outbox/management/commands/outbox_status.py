"""Say how the outbox fares, for people and for probes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import DurationField, ExpressionWrapper, F, Max, Q, QuerySet
from django.db.models.functions import Now

from outbox.durations import format_duration
from outbox.lanes import WAITING_LIMIT, BlockedLane, blocked_lanes
from outbox.models import Delivery, PausedHandler, RelayHeartbeat

from ._options import add_database, add_format, as_json, as_table, clear_errors, duration, served_database

# Counting stops here, so that a probe costs the same however long the backlog is.
COUNT_LIMIT = 100_000

# Paused handlers and blocked lanes that are named.
LIST_LIMIT = 20

# So much of a text fits into a table.
_TEXT_WIDTH = 60

_LABELS = {
    "due": "pending and due",
    "scheduled": "pending for later",
    "held": "pending and held",
    "oldest_due_s": "oldest due for",
    "dispatched": "dispatched and unconfirmed",
    "overdue": "of these overdue",
    "failed": "failed",
    "relays_alive": "relays alive",
}


_AGE = ExpressionWrapper(Now() - F("available_at"), output_field=DurationField())
_IN_BATCH = Q(held=Delivery.Held.BATCH)


class Command(BaseCommand):
    """Count along the partial indexes, whose size follows the backlog and not the history."""

    help = "Shows the backlog, the oldest pending age, failures and relays. Exits with 1 beyond --max-lag."
    # A probe runs every few seconds; the checks belong to the deployment.
    requires_system_checks: Any = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--max-lag",
            type=duration,
            metavar="SECONDS",
            help="exit with 1 if a due delivery has waited longer",
        )
        add_format(parser)
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a table, or JSON, and judge the lag."""
        database = served_database(options["database"])
        with clear_errors(database):
            status = _status(database)
            paused = _paused(database)
            blocked = blocked_lanes(database, limit=LIST_LIMIT)
        if options["format"] == "json":
            limits = {"count_limit": COUNT_LIMIT, "list_limit": LIST_LIMIT}
            lanes = [_record(lane) for lane in blocked]
            whole = {"database": database, **status, "paused": paused, "blocked_lanes": lanes, **limits}
            self.stdout.write(as_json(whole))
        else:
            self._write_tables(database, status, paused, blocked)
        max_lag: timedelta | None = options["max_lag"]
        if max_lag is not None and status["oldest_due_s"] > max_lag.total_seconds():
            waited, allowed = (
                format_duration(status["oldest_due_s"]),
                format_duration(max_lag.total_seconds()),
            )
            raise CommandError(f"the oldest due delivery has waited {waited}; --max-lag allows {allowed}")

    def _write_tables(
        self,
        database: str,
        status: dict[str, Any],
        paused: Sequence[dict[str, Any]],
        blocked: Sequence[BlockedLane],
    ) -> None:
        rows = [[label, _text(name, status[name])] for name, label in _LABELS.items()]
        for label, found in (("paused handlers", paused), ("blocked lanes", blocked)):
            rows.append([label, _up_to(LIST_LIMIT, len(found))])
        self.stdout.write(as_table(("database", database), rows))
        if paused:
            titles = ("paused handler", "waiting", "since", "reason")
            self.stdout.write("\n" + as_table(titles, _about(paused), text=titles))
        if blocked:
            columns = ("blocked lane", "key", "waiting", "behind", "of event", "error")
            self.stdout.write("\n" + as_table(columns, [_row(lane) for lane in blocked], text=columns))


def _status(database: str) -> dict[str, Any]:
    deliveries = Delivery.objects.using(database)
    return {
        "due": _count(deliveries.due()),
        "scheduled": _count(deliveries.pending().filter(held="", available_at__gt=Now())),
        "held": _count(deliveries.pending().exclude(held="")),
        "oldest_due_s": _oldest_due_s(deliveries),
        "dispatched": _count(deliveries.unconfirmed()),
        "overdue": _count(deliveries.overdue()),
        "failed": _count(deliveries.failed()),
        "relays_alive": RelayHeartbeat.objects.using(database).alive().count(),
    }


def _count(rows: QuerySet[Any]) -> int:
    return rows.order_by().values("pk")[:COUNT_LIMIT].count()


def _oldest_due_s(deliveries: Any) -> float:
    # Batches are due when the oldest of them is; other held deliveries wait for something else than a relay.
    held = deliveries.pending().exclude(held="").order_by("handler", "id")[:COUNT_LIMIT]
    ages = (
        deliveries.due().annotate(age=_AGE).values_list("age", flat=True).first(),
        held.annotate(age=_AGE).aggregate(oldest=Max("age", filter=_IN_BATCH))["oldest"],
    )
    return round(max((age.total_seconds() for age in ages if age), default=0.0), 3)


def _text(name: str, value: Any) -> str:
    if name == "oldest_due_s":
        return format_duration(value) if value else "-"
    return _up_to(COUNT_LIMIT, value)


def _up_to(limit: int, count: int) -> str:
    return f"{count}+" if count == limit else str(count)


def _paused(database: str) -> list[dict[str, Any]]:
    return [
        {
            "handler": row.handler,
            "reason": row.reason,
            "paused_at": row.paused_at.isoformat(),
            "waiting": row.waiting(COUNT_LIMIT),
        }
        for row in PausedHandler.objects.using(database).order_by("handler")[:LIST_LIMIT]
    ]


def _about(paused: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            each["handler"],
            _up_to(COUNT_LIMIT, each["waiting"]),
            each["paused_at"][:19],
            _shortened(each["reason"]),
        ]
        for each in paused
    ]


def _record(lane: BlockedLane) -> dict[str, Any]:
    failed_at = lane.failed_at.isoformat() if lane.failed_at else None
    return {**asdict(lane), "event_id": str(lane.event_id), "failed_at": failed_at}


def _row(lane: BlockedLane) -> list[str]:
    return [
        lane.handler,
        lane.key,
        _up_to(WAITING_LIMIT, lane.waiting),
        f"#{lane.delivery_id}",
        f"{lane.topic} {lane.event_id}",
        _shortened(lane.error),
    ]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_WIDTH else f"{line[: _TEXT_WIDTH - 1]}…"
