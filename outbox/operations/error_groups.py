"""The newest failed deliveries of a handler, grouped by error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min
from django.db.models.functions import Right

from outbox.models import Delivery
from outbox.models.clock import to_aware

from .newest import newest

# The failed deliveries of one handler that are grouped, the newest.
GROUPED_LIMIT = 500
# Characters at the end of a traceback that are read for its last line.
_TAIL = 300

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorGroup:
    """Failed deliveries whose errors have the same last line but for its numbers.

    Args:
        error: the last line of one of the errors.
        first_at: when the first of them failed, an aware time.
    """

    error: str
    count: int
    first_at: datetime
    last_at: datetime


def error_groups(database: str, handler: str, *, limit: int) -> list[ErrorGroup]:
    """Return the largest groups among the newest `GROUPED_LIMIT` failed deliveries of a handler."""
    failed = Delivery.objects.using(database).failed().filter(handler=handler)
    rows = (
        newest(failed, GROUPED_LIMIT)
        .filter(finished_at__isnull=False)
        .values(tail=Right("error", _TAIL))
        .annotate(count=Count("pk"), first=Min("finished_at"), last=Max("finished_at"))
    )
    groups: dict[str, ErrorGroup] = {}
    for row in rows:
        group = _group(row, database)
        kind = _NUMBER.sub("#", group.error)
        groups[kind] = _merged(groups[kind], group) if kind in groups else group
    return sorted(groups.values(), key=lambda group: (-group.count, group.error))[:limit]


def _group(row: dict[str, Any], database: str) -> ErrorGroup:
    return ErrorGroup(
        error=row["tail"].strip().rpartition("\n")[2],
        count=row["count"],
        first_at=to_aware(row["first"], database),
        last_at=to_aware(row["last"], database),
    )


def _merged(one: ErrorGroup, other: ErrorGroup) -> ErrorGroup:
    return ErrorGroup(
        error=one.error,
        count=one.count + other.count,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
    )
