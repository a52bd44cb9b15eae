"""Keyset pagination: no page counts the table, and a late page costs no more than the first.

A page reads rows in the order of one index and filters them by the conditions that the index does not serve.
The scan ends after `SCAN_LIMIT` rows even if the page is not full; the next page continues from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db.models import BooleanField, F, Func, Model, QuerySet, Value
from django.db.models.lookups import GreaterThan, GreaterThanOrEqual, LessThan, LessThanOrEqual

# The most rows that one page reads: some tenths of a second of work.
SCAN_LIMIT = 100_000

Position = tuple[Any, ...]


class _Row(Func):
    """Several columns or values, compared as one row; an index serves such a comparison."""

    template = "(%(expressions)s)"
    output_field = BooleanField()


# The parameters of the position of a page.
AFTER, BEFORE = "after", "before"


class Ordering(NamedTuple):
    """The columns of an index, all ascending or all descending; together they are unique."""

    columns: tuple[str, ...]
    descending: bool = False

    def names(self, *, backward: bool = False) -> list[str]:
        """Return the arguments of `order_by`."""
        sign = "-" if self.descending != backward else ""
        return [sign + column for column in self.columns]

    def after(self, model: type[Model], position: Position, *, backward: bool) -> Any:
        """Return the condition for rows after a position."""
        return self._compare(model, position, LessThan if self.descending != backward else GreaterThan)

    def up_to(self, model: type[Model], position: Position, *, backward: bool) -> Any:
        """Return the condition for rows before a position or at it."""
        lookup = GreaterThanOrEqual if self.descending != backward else LessThanOrEqual
        return self._compare(model, position, lookup)

    def _compare(self, model: type[Model], position: Position, lookup: Any) -> Any:
        values = [
            Value(value, output_field=_field(model, name))
            for name, value in zip(self.columns, position, strict=True)
        ]
        return lookup(_Row(*map(F, self.columns)), _Row(*values))

    def position(self, row: Model) -> Position:
        """Return the position of a row."""
        return tuple(getattr(row, column) for column in self.columns)

    def encode(self, position: Position) -> str:
        """Return a position as text for a URL."""
        return "~".join(part.isoformat() if isinstance(part, datetime) else str(part) for part in position)

    def decode(self, model: type[Model], text: str) -> Position:
        """Parse a position.

        Raises:
            ValueError: if the text is not a position.
        """
        parts = text.split("~")
        if len(parts) != len(self.columns):
            raise ValueError(f"{text!r} is not a position in {self.columns!r}")
        fields = [_field(model, name) for name in self.columns]
        try:
            values = [field.to_python(part) for field, part in zip(fields, parts, strict=True)]
            return tuple(map(_within_range, values))
        except (ValidationError, OverflowError) as error:
            raise ValueError(f"{text!r} is not a position") from error


class Page(NamedTuple):
    """The rows of a page, and the positions where the pages before and after it start."""

    rows: list[Any]
    before: Position | None
    after: Position | None
    hit_scan_limit: bool


@dataclass(frozen=True, kw_only=True)
class IndexScan:
    """A bounded scan of rows in the order of an index.

    Args:
        rows: the rows that the index selects.
        conditions: conditions that the index does not serve.
        size: rows of a page.
    """

    rows: QuerySet[Any]
    ordering: Ordering
    conditions: Sequence[Any]
    size: int

    def page(self, start: Position | None = None, *, backward: bool = False) -> Page:
        """Return the page that begins after `start`, or the page that ends before it if `backward`."""
        rows = self.rows.order_by(*self.ordering.names(backward=backward))
        if start is not None:
            rows = rows.filter(self.ordering.after(rows.model, start, backward=backward))
        limit = self._limit(rows)
        if limit is not None:
            rows = rows.filter(self.ordering.up_to(rows.model, limit, backward=backward))
        found = list(rows.filter(*self.conditions)[: self.size + 1])
        is_full = len(found) > self.size
        del found[self.size :]
        far = self.ordering.position(found[-1]) if is_full else limit
        near = self.ordering.position(found[0]) if found and start is not None else start
        hit_scan_limit = limit is not None and not is_full
        if backward:
            return Page(found[::-1], far, near, hit_scan_limit)
        return Page(found, near, far, hit_scan_limit)

    def _limit(self, rows: QuerySet[Any]) -> Position | None:
        if not self.conditions:
            return None
        columns = rows.values_list(*self.ordering.columns)
        last: Position | None = columns[SCAN_LIMIT - 1 : SCAN_LIMIT].first()
        return last


def _within_range(value: Any) -> Any:
    """Return a value of a position if every database can compare it.

    Raises:
        OverflowError: if a number has more than 64 bits, or if a time has no form in UTC.
    """
    if isinstance(value, int):
        value.to_bytes(8, signed=True)
    elif isinstance(value, datetime) and value.tzinfo is not None:
        value.astimezone(UTC)
    return value


def _field(model: type[Model], name: str) -> Any:
    return model._meta.pk if name == "pk" else model._meta.get_field(name)
