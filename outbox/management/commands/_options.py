"""Options and errors that the commands share."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, Error, ProgrammingError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from outbox.conf import get_settings
from outbox.durations import parse_duration
from outbox.errors import MissingTables, OutboxError, missing_schema
from outbox.outages import is_outage

# A change of more rows asks first.
ASK_ABOVE = 1000


def duration(text: str) -> timedelta:
    """Parse a duration such as 15m."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def moment(text: str) -> datetime:
    """Parse a duration before now, or a time; a time without an offset is in the project's time zone."""
    try:
        found = parse_datetime(text)
        if found is None:
            return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        raise ArgumentTypeError(
            f"{text!r} is neither a duration such as 2h nor a time such as 2026-01-31T09:00"
        ) from None
    return timezone.make_aware(found, timezone.get_default_timezone()) if timezone.is_naive(found) else found


def add_database(parser: ArgumentParser) -> None:
    """Declare `--database`."""
    parser.add_argument(
        "--database", help="alias of the database; the first that the outbox serves if not given"
    )


def add_failed_filters(parser: ArgumentParser, ids: str) -> None:
    """Declare ids, the filters of failed deliveries, and the options of a change of many rows.

    Args:
        ids: the help of the ids.
    """
    parser.add_argument("ids", nargs="*", type=int, metavar="ID", help=ids)
    parser.add_argument("--handler", help="deliveries of this handler")
    parser.add_argument(
        "--topic", metavar="PATTERN", help="deliveries with this topic, or a pattern such as shop.*"
    )
    parser.add_argument("--since", type=moment, help="deliveries that failed since: 2h, or a time")
    parser.add_argument("--all", action="store_true", help="all failed deliveries")
    parser.add_argument("--dry-run", action="store_true", help="count the deliveries, change nothing")
    parser.add_argument("--yes", action="store_true", help="ask no question, however many deliveries match")
    add_database(parser)


def failed_filters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given filters of failed deliveries.

    Raises:
        CommandError: unless exactly one of ids, filters and `--all` is given.
    """
    filters = {name: options[name] for name in ("handler", "topic", "since")}
    if options["all"] + any(filters.values()) + bool(options["ids"]) != 1:
        raise CommandError(
            "give ids, or --handler, --topic and --since, or --all: exactly one of these kinds"
        )
    return filters


def ask_before(change: str, rows: Any, *, yes: bool) -> None:
    """Ask before a change of more than `ASK_ABOVE` rows.

    Args:
        change: the change in the passive, such as `retried`.
        yes: whether the answer was given on the command line.

    Raises:
        CommandError: if the answer is no, or if nobody can be asked.
    """
    if not yes and rows.order_by().values("pk")[: ASK_ABOVE + 1].count() > ASK_ABOVE:
        ask(f"more than {ASK_ABOVE:,} deliveries will be {change}")


def ask(question: str) -> None:
    """Ask whether a change is wanted.

    Args:
        question: the change, as a sentence without its full stop.

    Raises:
        CommandError: if the answer is no, or if nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise CommandError(f"{question}; give --yes if you want this")
    if input(f"{question.capitalize()}. Continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed")


def add_format(parser: ArgumentParser) -> None:
    """Declare `--format`."""
    parser.add_argument("--format", choices=("table", "json"), default="table")


def served_database(alias: str | None) -> str:
    """Return the given alias, or else the default one.

    Raises:
        CommandError: if the outbox does not serve the alias, or if a setting is wrong.
    """
    try:
        served = get_settings().databases
    except OutboxError as error:
        raise CommandError(str(error)) from error
    if alias is None:
        return DEFAULT_DB_ALIAS if DEFAULT_DB_ALIAS in served else served[0]
    if alias not in served:
        raise CommandError(f"database {alias!r} is not served by the outbox; choose from {list(served)!r}")
    return alias


@contextmanager
def clear_errors(database: str) -> Iterator[None]:
    """Show errors that an operator can fix as one line instead of a traceback."""
    try:
        yield
    except OutboxError as error:
        raise CommandError(str(error)) from error
    except Error as error:
        if not (isinstance(error, ProgrammingError) or is_outage(error)):
            raise
        raise CommandError(f"{_fact(database, error)}: {str(error).strip()}") from error


def _fact(database: str, error: Error) -> str:
    if missing := missing_schema(error):
        return str(MissingTables(database, missing))
    return f"database {database!r} did not answer"
