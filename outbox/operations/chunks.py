"""Reading many rows in chunks, by ascending primary key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# A function that is told the size of each chunk that is done.
Done = Callable[[int], object]


def ignore(_count: int) -> None:
    """Report no progress."""


def in_chunks(rows: Any, *fields: str, size: int) -> Iterator[list[Any]]:
    """Yield the values of a queryset's rows in lists of at most `size` rows.

    Each row is read once, even if the caller changes it so that it matches the queryset again.

    Args:
        rows: a queryset without slices.
        fields: the fields of each tuple after the primary key.
        size: rows of one query.
    """
    ordered = rows.order_by("pk").values_list("pk", *fields)
    chunk = list(ordered[:size])
    while chunk:
        yield chunk
        chunk = list(ordered.filter(pk__gt=chunk[-1][0])[:size])
