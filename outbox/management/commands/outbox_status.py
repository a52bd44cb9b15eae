"""Show the health of the outbox, for operators and for probes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connections

from outbox.durations import format_duration
from outbox.operations.blocked_keys import WAITING_LIMIT, BlockedKey
from outbox.operations.health import get_health
from outbox.operations.health_record import health_record
from outbox.operations.health_report import (
    COUNT_LIMIT,
    LIST_LIMIT,
    Health,
    PausedHealth,
    ProblemKind,
    ProcessHealth,
    QueueHealth,
    Verdict,
)

from ._options import add_database, add_format, clear_errors, duration, served_database
from ._output import as_json, as_table, limited, shortened
from ._watch import watch

WATCH_INTERVAL = timedelta(seconds=2)

_LABELS = {
    "due": "pending, due",
    "scheduled": "pending, scheduled",
    "waiting": "pending, waiting",
    "put_off": "pending, put off",
    "oldest_due_s": "oldest due",
    "unconfirmed": "dispatched",
    "overdue": "dispatched, overdue",
    "oldest_unconfirmed_s": "oldest unconfirmed",
    "failed": "failed",
    "throughput_per_minute": "succeeded in the last minute",
}
_DURATIONS = ("oldest_due_s", "oldest_unconfirmed_s")


class Command(BaseCommand):
    """Show the health report; its cost follows the backlog, not the history."""

    help = (
        "Shows the problems, the backlog, the relays and the workers. Exits with 1 beyond --max-lag, and "
        "with --check if there is trouble."
    )
    # A probe runs every few seconds; system checks belong to the deployment.
    requires_system_checks: Any = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--max-lag",
            type=duration,
            metavar="SECONDS",
            help="exit with 1 if a delivery was due longer ago and is not confirmed",
        )
        parser.add_argument("--check", action="store_true", help="exit with 1 if the verdict is trouble")
        parser.add_argument(
            "--watch",
            type=duration,
            nargs="?",
            const=WATCH_INTERVAL,
            metavar="SECONDS",
            help="show the report anew on a terminal, every 2 seconds if not given",
        )
        add_format(parser)
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Write a table or JSON, then check the lag and the verdict."""
        database, max_lag = served_database(options["database"]), options["max_lag"]
        if options["watch"] is not None:
            if options["format"] == "json" or max_lag or options["check"]:
                raise CommandError("--watch goes with no other option than --database")
            watch(
                lambda: _report(_health(database)),
                self.stdout._out,
                interval_s=options["watch"].total_seconds(),
            )
            return
        health = _health(database, max_lag)
        record = options["format"] == "json"
        self.stdout.write(as_json(health_record(health)) if record else _report(health))
        _check(health, options["check"])


def _health(database: str, max_lag: timedelta | None = None) -> Health:
    with clear_errors(database):
        try:
            return get_health(database, max_lag=max_lag)
        except Error:
            # A broken connection would stay broken, and `--watch` asks again.
            if not connections[database].in_atomic_block:
                connections[database].close()
            raise


def _report(health: Health) -> str:
    """Return the report as tables."""
    figures = asdict(health.figures)
    rows = [[label, _text(name, figures[name])] for name, label in _LABELS.items()]
    rows.append(["relays alive", str(health.alive("relay"))])
    rows.append(["workers alive", str(health.alive("worker"))])
    rows.append(["paused handlers", limited(len(health.paused), LIST_LIMIT)])
    rows.append(["blocked keys", limited(len(health.blocked_keys), LIST_LIMIT)])
    problems = ([problem.kind.verdict, problem.kind, problem.cause] for problem in health.problems)
    processes = ("process", "kind", "version", "queues", "threads", "state", "last seen")
    blocked_keys = ("handler", "blocked key", "waiting", "blocked by", "event", "error")
    parts = [
        health.sentence,
        as_table(("database", health.database), rows),
        _list(("problem", "kind", "cause"), problems),
        _list(("queue", "workers", "threads", "unconfirmed", "oldest"), map(_queue_row, health.queues)),
        _list(processes, map(_process_row, health.processes)),
        _list(("paused handler", "waiting", "since", "reason"), map(_paused_row, health.paused)),
        _list(blocked_keys, map(_blocked_row, health.blocked_keys)),
    ]
    return "\n\n".join(filter(None, parts))


def _list(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    found = list(rows)
    return as_table(titles, found, text=titles) if found else ""


def _check(health: Health, no_trouble: bool) -> None:
    """Exit with 1 beyond the allowed lag, or if there is trouble and none is allowed."""
    for problem in health.problems:
        if problem.kind == ProblemKind.LAG:
            raise CommandError(f"{problem.cause} by --max-lag")
    if no_trouble and health.verdict == Verdict.TROUBLE:
        raise CommandError(health.sentence)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in _DURATIONS:
        return format_duration(value) if value else "-"
    return limited(value, COUNT_LIMIT)


def _queue_row(queue: QueueHealth) -> list[str]:
    waited = format_duration(queue.oldest_unconfirmed_s) if queue.oldest_unconfirmed_s else "-"
    name = queue.name or "(others)"
    return [name, str(queue.workers), str(queue.threads), limited(queue.unconfirmed, COUNT_LIMIT), waited]


def _process_row(process: ProcessHealth) -> list[str]:
    queues = shortened(", ".join(process.queues), 40) or "all"
    state = process.state if process.alive else "dead"
    where, seen = f"{process.host}:{process.pid}", f"{format_duration(process.seen_s)} ago"
    return [where, process.kind, process.version, queues, str(process.threads), state, seen]


def _paused_row(paused: PausedHealth) -> list[str]:
    waiting, since = limited(paused.waiting, COUNT_LIMIT), paused.paused_at.isoformat()[:19]
    return [paused.handler, waiting, since, shortened(paused.reason)]


def _blocked_row(blocked: BlockedKey) -> list[str]:
    return [
        blocked.handler,
        blocked.key,
        limited(blocked.waiting, WAITING_LIMIT),
        f"#{blocked.delivery_id}",
        f"{blocked.topic} {blocked.event_id}",
        shortened(blocked.error),
    ]
