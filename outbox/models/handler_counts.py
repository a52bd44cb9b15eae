"""Counts of deliveries by handler, each bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.models import QuerySet

# The limit counts the entries of one handler in a partial index that begins with the handler, so that a long
# backlog of one handler hides no other.
_BY_NAME = """
WITH names(handler) AS (VALUES {rows})
SELECT handler,
    (SELECT count(*) FROM (
        SELECT 1 FROM outbox_delivery AS one
        WHERE one.state = 'failed' AND one.handler = names.handler LIMIT %s
    ) AS failed),
    (SELECT count(*) FROM (
        SELECT 1 FROM outbox_delivery AS one
        WHERE one.state = 'pending' AND one.waits_for <> '' AND one.handler = names.handler LIMIT %s
    ) AS waiting)
FROM names
"""


def count_failed_and_waiting(
    database: str, handlers: Sequence[str], *, limit: int
) -> dict[str, tuple[int, int]]:
    """Return how many deliveries of each handler are failed, and how many wait.

    Args:
        limit: each count stops here.
    """
    if not handlers:
        return {}
    rows = ", ".join(["(CAST(%s AS text))"] * len(handlers))
    with connections[database].cursor() as cursor:
        cursor.execute(_BY_NAME.format(rows=rows), [*handlers, limit, limit])
        return {handler: (failed, waiting) for handler, failed, waiting in cursor.fetchall()}


def count_by_handler(rows: QuerySet[Any], *, limit: int) -> dict[str, int]:
    """Return how many of the first `limit` rows each handler has."""
    inner, parameters = rows.values("handler")[:limit].query.get_compiler(using=rows.db).as_sql()
    with connections[rows.db].cursor() as cursor:
        # The inner text comes from Django's compiler, which leaves values to the parameters.
        cursor.execute(
            f"SELECT handler, count(*) FROM ({inner}) AS counted GROUP BY handler",  # noqa: S608  # no value in it
            parameters,
        )
        return dict(cursor.fetchall())
