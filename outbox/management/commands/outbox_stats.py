"""Show statistics of each handler: counts, durations and slow runs."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from outbox.durations import format_duration
from outbox.operations.stats import (
    HandlerSummary,
    SlowHandler,
    count_failed_deliveries,
    get_slow_handlers,
    get_stats,
)

from ._options import add_database, add_format, clear_errors, duration, served_database
from ._output import as_json, as_table, limited

# The count of failed deliveries of one handler stops here.
COUNT_LIMIT = 10_000

_TITLES = (
    "handler",
    "dispatched",
    "runs",
    "runs succeeded",
    "runs retried",
    "runs failed",
    "deliveries failed",
    "mean",
    "p50",
    "p95",
    "p99",
    "max",
)


def threshold(text: str) -> float:
    """Parse a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds such as 0.1")
    return seconds


class Command(BaseCommand):
    """Read the statistics of all processes from the table."""

    help = "Shows statistics of each handler over all processes: counts, durations and percentiles."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--since", type=duration, help="only the last 90s, 15m, 1h or 7d; all if not given"
        )
        parser.add_argument(
            "--slow", type=threshold, metavar="SECONDS", help="mark handlers with slower runs"
        )
        add_format(parser)
        add_database(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a table, or JSON."""
        database = served_database(options["database"])
        slow: dict[str, SlowHandler] = {}
        with clear_errors(database):
            summaries = get_stats(since=options["since"], using=database)
            if options["slow"] is not None:
                found = get_slow_handlers(options["slow"], options["since"], using=database)
                slow = {each.handler: each for each in found}
            failed = {
                each.handler: count_failed_deliveries(each.handler, limit=COUNT_LIMIT, using=database)
                for each in summaries
            }
        if options["format"] == "json":
            self.stdout.write(as_json(_records(summaries, failed, slow)))
        elif summaries:
            self.stdout.write(as_table(*_table(summaries, failed, slow, options["slow"])))
        else:
            self.stdout.write("No handler ran in this period.")


def _records(
    summaries: Sequence[HandlerSummary], failed: dict[str, int], slow: dict[str, SlowHandler]
) -> list[dict[str, Any]]:
    return [
        {
            **asdict(each),
            "failed_deliveries": failed[each.handler],
            "slow": asdict(slow[each.handler]) if each.handler in slow else None,
        }
        for each in summaries
    ]


def _table(
    summaries: Sequence[HandlerSummary],
    failed: dict[str, int],
    slow: dict[str, SlowHandler],
    threshold_s: float | None,
) -> tuple[list[str], list[list[str]]]:
    rows = [_row(each, failed[each.handler]) for each in summaries]
    if threshold_s is None:
        return list(_TITLES), rows
    marks = [_mark(slow.get(each.handler)) for each in summaries]
    return (
        [*_TITLES, f"slower than {format_duration(threshold_s)}"],
        [[*row, mark] for row, mark in zip(rows, marks, strict=True)],
    )


def _row(one: HandlerSummary, failed: int) -> list[str]:
    counts = (one.dispatched, one.runs, one.succeeded_runs, one.retried_runs, one.failed_runs)
    durations = (one.mean_s, one.p50_s, one.p95_s, one.p99_s, one.max_s)
    cells = (format_duration(s) if one.runs else "-" for s in durations)
    return [one.handler, *map(str, counts), limited(failed, COUNT_LIMIT), *cells]


def _mark(slow: SlowHandler | None) -> str:
    if slow is None:
        return ""
    return f"SLOW: {slow.slow} of {slow.runs}, mean {format_duration(slow.slow_mean_s)}"
