"""What the operators' commands share."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, Error, OperationalError, ProgrammingError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from outbox.conf import get_settings
from outbox.durations import parse_duration
from outbox.errors import OutboxError


def duration(text: str) -> timedelta:
    """Parse a duration such as 15m."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def moment(text: str) -> datetime:
    """Parse a duration before now, or a date and time; without an offset it is in the project's time zone."""
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
        "--database", help="the alias of the database; the first that the outbox serves if not given"
    )


def add_format(parser: ArgumentParser) -> None:
    """Declare `--format`."""
    parser.add_argument("--format", choices=("table", "json"), default="table")


def served_database(alias: str | None) -> str:
    """Return the alias to work on.

    Raises:
        CommandError: if the outbox does not serve it, or a setting is wrong.
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
    """Turn what an operator can mend into a line instead of a traceback."""
    try:
        yield
    except OutboxError as error:
        raise CommandError(str(error)) from error
    except (OperationalError, ProgrammingError) as error:
        raise CommandError(f"{_fact(database, error)}: {str(error).strip()}") from error


def lacks_tables(error: Error) -> bool:
    """Say whether a statement failed since its table is missing."""
    # PostgreSQL calls it undefined_table; SQLite has only the text.
    return getattr(error.__cause__, "sqlstate", None) == "42P01" or "no such table" in str(error)


def _fact(database: str, error: Error) -> str:
    if lacks_tables(error):
        return f"database {database!r} lacks the outbox's tables; run manage.py migrate --database {database}"
    return f"database {database!r} did not answer"


def as_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, text: Container[str] = ()) -> str:
    """Return aligned columns: the first and those titled in `text` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index and title not in text else cell.ljust(width)
            for index, (title, cell, width) in enumerate(zip(titles, row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
    return "\n".join(lines)


def as_json(value: Any) -> str:
    """Return JSON for another program."""
    return json.dumps(value, indent=2)


def in_chunks(fetch: Callable[[Any], Sequence[Any]], key: Callable[[Any], Any]) -> Iterator[Sequence[Any]]:
    """Call `fetch` with the key of the last row of the chunk before, until nothing comes."""
    last: Any = None
    while rows := fetch(last):
        yield rows
        last = key(rows[-1])
