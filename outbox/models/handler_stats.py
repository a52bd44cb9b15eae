"""The table of statistics, with one row per handler and minute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func, IntegerField, Max, Sum
from django.db.models.functions import Now, TruncMinute
from django.utils.translation import gettext_lazy as _

from .clock import to_column
from .histogram import BUCKETS, bucket_of
from .row_locks import brief_transaction, unlocked


@dataclass(slots=True)
class Tally:
    """The counts and durations of one handler since the last flush."""

    dispatched: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    duration_total_s: float = 0.0
    duration_max_s: float = 0.0
    histogram: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def count(self, result: str, duration_s: float) -> None:
        """Count one run.

        Args:
            result: the name of a counter: `succeeded`, `retried` or `failed`.
        """
        setattr(self, result, getattr(self, result) + 1)
        self.duration_total_s += duration_s
        if duration_s > self.duration_max_s:
            self.duration_max_s = duration_s
        self.histogram[bucket_of(duration_s)] += 1

    def add(self, other: Tally) -> None:
        """Merge another tally into this one."""
        self.dispatched += other.dispatched
        self.succeeded += other.succeeded
        self.retried += other.retried
        self.failed += other.failed
        self.duration_total_s += other.duration_total_s
        self.duration_max_s = max(self.duration_max_s, other.duration_max_s)
        self.histogram = merge_histograms(self.histogram, other.histogram)


def merge_histograms(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Add two histograms bucket by bucket; an empty histogram counts as all zero."""
    if not left or not right:
        return list(left or right)
    return [a + b for a, b in zip(left, right, strict=True)]


if TYPE_CHECKING:
    _Field = models.Field[Sequence[int], list[int]]
else:
    # Django's fields take no type arguments at run time.
    _Field = models.Field


class HistogramField(_Field):
    """Counts per bucket: `integer[]` on PostgreSQL, so that rows merge in SQL; JSON text elsewhere."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        """Return the column type of the backend."""
        return "integer[]" if connection.vendor == "postgresql" else "text"

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> list[int]:
        """Return a list of counts, empty for a row without a histogram."""
        return json.loads(value) if isinstance(value, str) else list(value or ())

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        """Return a list for PostgreSQL and text elsewhere."""
        return value if connection.vendor == "postgresql" else json.dumps(list(value or ()))


_ADDED = ("dispatched", "succeeded", "retried", "failed", "duration_total_s")


class _BucketCount(Func):
    """One bucket of a histogram, for sums over rows."""

    template = "(%(expressions)s)[%(index)s + 1]"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        """Read the bucket from JSON text."""
        template = "json_extract(%(expressions)s, '$[%(index)s]')"
        return self.as_sql(compiler, connection, template=template, **context)


def _tally_of(merged: Sequence[Any]) -> Tally:
    added, longest, histogram = merged[: len(_ADDED)], merged[len(_ADDED)], merged[len(_ADDED) + 1 :]
    return Tally(**dict(zip(_ADDED, added, strict=True)), duration_max_s=longest, histogram=list(histogram))


class HandlerStatsQuerySet(models.QuerySet["HandlerStats"]):
    """Verbs on statistics."""

    def add(self, tallies: Mapping[str, Tally]) -> None:
        """Add tallies by handler to the current minute of the database clock."""
        if not tallies:
            return
        # A fixed order, so that two processes that flush at the same time cannot deadlock.
        ordered = sorted(tallies.items())
        connection = connections[self.db]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(_UPSERT, _columns(ordered))
            return
        with transaction.atomic(using=self.db):
            for handler, tally in ordered:
                self._add_portably(handler, tally)

    def within(self, since: timedelta | datetime | None) -> HandlerStatsQuerySet:
        """Keep the minutes that end after a moment, or after `now - since` by the database clock."""
        if since is None:
            return self.all()
        start = Now() - since if isinstance(since, timedelta) else to_column(since, connections[self.db])
        return self.filter(bucket__gt=start - timedelta(minutes=1))

    def merged(self) -> dict[str, Tally]:
        """Return one tally per handler, over all rows, in one query."""
        sums = [Sum(name) for name in _ADDED]
        buckets = [Sum(_BucketCount("histogram", index=index), default=0) for index in range(BUCKETS)]
        columns = {f"merged_{i}": column for i, column in enumerate((*sums, Max("duration_max_s"), *buckets))}
        rows = self.order_by("handler").values("handler").annotate(**columns).values_list("handler", *columns)
        return {handler: _tally_of(values) for handler, *values in rows}

    def forget(self, older_than: timedelta, *, limit: int) -> int:
        """Delete minutes that are older than this, the oldest first; return how many.

        Args:
            limit: minutes of one handler each, at most.
        """
        oldest = self.filter(bucket__lt=Now() - older_than).order_by("bucket", "handler")
        if not oldest.exists():
            return 0
        with brief_transaction(self.db):
            pks = list(unlocked(oldest).values_list("pk", flat=True)[:limit])
            return self.filter(pk__in=pks).delete()[0]

    def _add_portably(self, handler: str, tally: Tally) -> None:
        row, _created = self.get_or_create(handler=handler, bucket=TruncMinute(Now()))
        merged = row.tally()
        merged.add(tally)
        self.filter(pk=row.pk).update(
            **{name: getattr(merged, name) for name in ("dispatched", "succeeded", "retried", "failed")},
            duration_total_s=merged.duration_total_s,
            duration_max_s=merged.duration_max_s,
            histogram=merged.histogram,
        )


class HandlerStats(models.Model):
    """The statistics of one handler within one minute, over all processes."""

    id = models.BigAutoField(_("id"), primary_key=True)
    handler = models.CharField(_("handler"), max_length=255)
    bucket = models.DateTimeField(_("minute"))
    dispatched = models.PositiveIntegerField(_("dispatched"), db_default=0)
    succeeded = models.PositiveIntegerField(_("succeeded"), db_default=0)
    retried = models.PositiveIntegerField(_("retried"), db_default=0)
    failed = models.PositiveIntegerField(_("failed"), db_default=0)
    duration_total_s = models.FloatField(_("total duration (s)"), db_default=0.0)
    duration_max_s = models.FloatField(_("maximum duration (s)"), db_default=0.0)
    histogram = HistogramField(_("histogram"), default=list)

    objects: ClassVar[Any] = HandlerStatsQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("handler statistics")
        verbose_name_plural = _("handler statistics")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["bucket", "handler"], name="outbox_handlerstats_minute"),
        ]

    def __str__(self) -> str:
        return f"{self.handler} {self.bucket:%Y-%m-%d %H:%M}"

    def tally(self) -> Tally:
        """Return the row as a tally."""
        return Tally(
            dispatched=self.dispatched,
            succeeded=self.succeeded,
            retried=self.retried,
            failed=self.failed,
            duration_total_s=self.duration_total_s,
            duration_max_s=self.duration_max_s,
            histogram=list(self.histogram or ()) or [0] * BUCKETS,
        )


_UPSERT = """
INSERT INTO outbox_handlerstats AS old
    (bucket, handler, dispatched, succeeded, retried, failed, duration_total_s, duration_max_s, histogram)
SELECT date_trunc('minute', statement_timestamp()), handler, dispatched, succeeded, retried, failed,
       duration_total_s, duration_max_s, histogram::integer[]
FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::integer[], %s::integer[], %s::float8[],
            %s::float8[], %s::text[])
    AS new(handler, dispatched, succeeded, retried, failed, duration_total_s, duration_max_s, histogram)
ON CONFLICT (bucket, handler) DO UPDATE SET
    dispatched = old.dispatched + excluded.dispatched,
    succeeded = old.succeeded + excluded.succeeded,
    retried = old.retried + excluded.retried,
    failed = old.failed + excluded.failed,
    duration_total_s = old.duration_total_s + excluded.duration_total_s,
    duration_max_s = greatest(old.duration_max_s, excluded.duration_max_s),
    histogram = (
        SELECT array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY position)
        FROM unnest(old.histogram, excluded.histogram) WITH ORDINALITY AS pair(a, b, position)
    )
"""


def _columns(tallies: Sequence[tuple[str, Tally]]) -> list[list[Any]]:
    rows = [
        (
            handler,
            tally.dispatched,
            tally.succeeded,
            tally.retried,
            tally.failed,
            tally.duration_total_s,
            tally.duration_max_s,
            "{" + ",".join(map(str, tally.histogram)) + "}",
        )
        for handler, tally in tallies
    ]
    return [list(column) for column in zip(*rows, strict=True)]
