"""Times of a database as aware datetimes, whatever USE_TZ and TIME_ZONE are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func, IntegerField
from django.utils import timezone


def from_project(moment: datetime) -> datetime:
    """Return a time that the project gave as an aware one; with USE_TZ off, its times are naive.

    Raises:
        ValueError: for a naive time with USE_TZ on.
    """
    if timezone.is_aware(moment):
        return moment
    if settings.USE_TZ:
        raise ValueError(f"{moment!r} is naive; give an aware datetime, such as timezone.now()")
    return timezone.make_aware(moment, timezone.get_default_timezone())


def to_aware(moment: datetime, database: str) -> datetime:
    """Return a time that was read from a database as an aware one.

    With USE_TZ off Django reads naive times. PostgreSQL converts them to the project's time zone; SQLite has
    no time zones, and its clock is in UTC.
    """
    if timezone.is_aware(moment):
        return moment
    is_sqlite = connections[database].vendor == "sqlite"
    return timezone.make_aware(moment, UTC if is_sqlite else timezone.get_default_timezone())


def to_column(moment: datetime, connection: BaseDatabaseWrapper) -> datetime:
    """Return an aware time in the form that the columns of a database take."""
    if settings.USE_TZ or connection.vendor != "sqlite":
        return moment
    return timezone.make_naive(moment, UTC)


class EpochStep(Func):
    """The number of whole steps of time between 1970 and a moment, as the database computes it."""

    template = "(extract(epoch FROM %(expressions)s)::bigint / %(step_s)s)"
    output_field = IntegerField()

    def __init__(self, moment: str, *, step_s: int) -> None:
        super().__init__(moment, step_s=int(step_s))

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """Compute the number from the text of the column."""
        template = "(CAST(strftime('%%%%s', %(expressions)s) AS integer) / %(step_s)s)"
        return self.as_sql(compiler, connection, template=template, **context)
