"""Pages by key instead of by number: no page counts the table, and a late page costs no more than the first.

A page is a walk along one index. Conditions that the index does not serve are tested on the way, and the
walk ends after `WINDOW` rows even if the page is not full: the next page goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db.models import BooleanField, F, Func, Model, QuerySet, Value
from django.db.models.lookups import GreaterThan, GreaterThanOrEqual, LessThan, LessThanOrEqual

# Rows that one page looks through at most, some tenths of a second of work.
WINDOW = 100_000

Position = tuple[Any, ...]


class _Row(Func):
    """Several columns or values as one, to be compared as a whole; an index serves such a comparison."""

    template = "(%(expressions)s)"
    output_field = BooleanField()


class Order(NamedTuple):
    """The columns of an index, all ascending or all descending; together they are unique."""

    columns: tuple[str, ...]
    descending: bool = False

    def names(self, *, backward: bool = False) -> list[str]:
        """Return the arguments of `order_by`."""
        sign = "-" if self.descending != backward else ""
        return [sign + column for column in self.columns]

    def beyond(self, model: type[Model], position: Position, *, backward: bool) -> Any:
        """Return the condition for what comes after a position."""
        return self._compare(model, position, LessThan if self.descending != backward else GreaterThan)

    def up_to(self, model: type[Model], position: Position, *, backward: bool) -> Any:
        """Return the condition for what comes before a position, or at it."""
        lookup = GreaterThanOrEqual if self.descending != backward else LessThanOrEqual
        return self._compare(model, position, lookup)

    def _compare(self, model: type[Model], position: Position, lookup: Any) -> Any:
        values = [
            Value(value, output_field=_field(model, name))
            for name, value in zip(self.columns, position, strict=True)
        ]
        return lookup(_Row(*map(F, self.columns)), _Row(*values))

    def position(self, row: Model) -> Position:
        """Return where a row stands."""
        return tuple(getattr(row, column) for column in self.columns)

    def encode(self, position: Position) -> str:
        """Return a position as text for a URL."""
        return "~".join(part.isoformat() if isinstance(part, datetime) else str(part) for part in position)

    def decode(self, model: type[Model], text: str) -> Position:
        """Parse a position.

        Raises:
            ValueError: for text that is none.
        """
        parts = text.split("~")
        if len(parts) != len(self.columns):
            raise ValueError(f"{text!r} is not a position in {self.columns!r}")
        fields = [_field(model, name) for name in self.columns]
        try:
            return tuple(field.to_python(part) for field, part in zip(fields, parts, strict=True))
        except ValidationError as error:
            raise ValueError(f"{text!r} is not a position") from error


class Page(NamedTuple):
    """The rows of a page, and from where the pages before and after it start."""

    rows: list[Any]
    before: Position | None
    after: Position | None
    is_cut_short: bool


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A walk along an index.

    Args:
        rows: what the index serves by itself.
        conditions: tested on the way.
        size: rows of a page.
    """

    rows: QuerySet[Any]
    order: Order
    conditions: Sequence[Any]
    size: int

    def page(self, start: Position | None = None, *, backward: bool = False) -> Page:
        """Return the page that begins after `start`, or backward the one that ends before it."""
        rows = self.rows.order_by(*self.order.names(backward=backward))
        if start is not None:
            rows = rows.filter(self.order.beyond(rows.model, start, backward=backward))
        limit = self._limit(rows)
        if limit is not None:
            rows = rows.filter(self.order.up_to(rows.model, limit, backward=backward))
        found = list(rows.filter(*self.conditions)[: self.size + 1])
        is_full = len(found) > self.size
        del found[self.size :]
        far = self.order.position(found[-1]) if is_full else limit
        near = self.order.position(found[0]) if found and start is not None else start
        is_cut_short = limit is not None and not is_full
        if backward:
            return Page(found[::-1], far, near, is_cut_short)
        return Page(found, near, far, is_cut_short)

    def _limit(self, rows: QuerySet[Any]) -> Position | None:
        if not self.conditions:
            return None
        last: Position | None = rows.values_list(*self.order.columns)[WINDOW - 1 : WINDOW].first()
        return last


def _field(model: type[Model], name: str) -> Any:
    return model._meta.pk if name == "pk" else model._meta.get_field(name)
