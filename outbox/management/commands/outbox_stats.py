"""Show what each handler did: counts, percentiles, slow ones."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from outbox.durations import format_duration
from outbox.stats import HandlerSummary, SlowHandler, get_slow_handlers, get_stats

from ._options import add_database, add_format, as_json, as_table, clear_errors, duration, served_database

_TITLES = ("handler", "dispatched", "runs", "ok", "retried", "failed", "mean", "p50", "p95", "p99", "max")


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

    help = "Shows what each handler did: counts, durations and their percentiles, over all processes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--since", type=duration, help="only the last 90s, 15m, 1h, 7d; all if not given")
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
        if options["format"] == "json":
            self.stdout.write(as_json(_records(summaries, slow)))
        elif summaries:
            self.stdout.write(as_table(*_table(summaries, slow, options["slow"])))
        else:
            self.stdout.write("No handler ran in this time.")


def _records(summaries: Sequence[HandlerSummary], slow: dict[str, SlowHandler]) -> list[dict[str, Any]]:
    return [
        {**asdict(each), "slow": asdict(slow[each.handler]) if each.handler in slow else None}
        for each in summaries
    ]


def _table(
    summaries: Sequence[HandlerSummary], slow: dict[str, SlowHandler], threshold_s: float | None
) -> tuple[list[str], list[list[str]]]:
    rows = [_row(each) for each in summaries]
    if threshold_s is None:
        return list(_TITLES), rows
    marks = [_mark(slow.get(each.handler)) for each in summaries]
    return (
        [*_TITLES, f"slower than {format_duration(threshold_s)}"],
        [[*row, mark] for row, mark in zip(rows, marks, strict=True)],
    )


def _row(one: HandlerSummary) -> list[str]:
    counts = (one.dispatched, one.runs, one.succeeded, one.retried, one.failed)
    durations = (one.mean_s, one.p50_s, one.p95_s, one.p99_s, one.max_s)
    return [one.handler, *map(str, counts), *(format_duration(s) if one.runs else "-" for s in durations)]


def _mark(slow: SlowHandler | None) -> str:
    if slow is None:
        return ""
    return f"SLOW: {slow.slow} of {slow.runs}, mean {format_duration(slow.slow_mean_s)}"
