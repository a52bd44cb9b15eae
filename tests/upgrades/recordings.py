"""The recordings of the previous release in `previous/`: read by the tests, written by `record`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "previous"
_BETWEEN = "\n\n-- ----------------\n\n"


def load(name: str) -> Any:
    """Return the content of a JSON file of the previous release."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def save(name: str, content: Any) -> None:
    """Write a JSON file."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(f"{text}\n")


def load_sql(name: str) -> list[str]:
    """Return the statements in a file of the previous release."""
    return (FOLDER / f"{name}.sql").read_text().rstrip("\n").split(_BETWEEN)


def save_sql(name: str, statements: list[str]) -> None:
    """Write a file of statements."""
    (FOLDER / f"{name}.sql").write_text(_BETWEEN.join(one.strip("\n") for one in statements) + "\n")
