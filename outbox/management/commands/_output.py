"""Tables and JSON that the commands write."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from typing import Any


def as_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, text: Container[str] = ()) -> str:
    """Return aligned columns; the first column and the columns titled in `text` are left-aligned."""
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
    """Return indented JSON."""
    return json.dumps(value, indent=2)


def limited(count: int, limit: int) -> str:
    """Return a count as text; a plus sign means that counting stopped at the limit."""
    return f"{count}+" if count == limit else str(count)


def shortened(text: str, width: int = 60) -> str:
    """Return a text as one line that fits into a table."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
