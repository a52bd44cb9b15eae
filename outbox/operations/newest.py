"""The newest rows of a table, as a condition that an index serves."""

from __future__ import annotations

from typing import Any


def newest(rows: Any, limit: int) -> Any:
    """Keep the newest `limit` rows by their primary key, with one statement more.

    A range of keys is one scan of an index. For a subquery with a limit, PostgreSQL may read a whole table.
    """
    first = rows.order_by("-pk").values_list("pk", flat=True)[limit - 1 : limit].first()
    return rows if first is None else rows.filter(pk__gte=first)
