"""The plans of the statements that a block sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.db import connection

TABLES = ("outbox_event", "outbox_delivery")


class explained:
    """Explain every statement on the large tables before it is run; within a transaction."""

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []
        self._context = connection.execute_wrapper(self._explain)

    def __enter__(self) -> list[dict[str, Any]]:
        self._context.__enter__()
        return self.plans

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def _explain(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if any(table in sql for table in TABLES) and "SAVEPOINT" not in sql:
            self.plans.append(self._plan(execute, sql, params, context))
        return execute(sql, params, many, context)

    def _plan(self, execute: Any, sql: str, params: Any, context: Any) -> dict[str, Any]:
        cursor = context["cursor"]
        execute("SAVEPOINT explained", None, False, context)
        execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params, False, context)
        (answer,) = cursor.fetchone()
        execute("ROLLBACK TO SAVEPOINT explained", None, False, context)
        plan: dict[str, Any] = (answer if isinstance(answer, list) else json.loads(answer))[0]["Plan"]
        return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def pages(plan: dict[str, Any]) -> int:
    """Return how many pages a statement has touched."""
    touched: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return touched
