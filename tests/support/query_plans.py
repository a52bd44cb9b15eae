"""The query plans of the statements that a block sends to PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.db import connection

TABLES = ("outbox_event", "outbox_delivery")
_WITHOUT_PLAN = ("SAVEPOINT", "RELEASE", "ROLLBACK", "PREPARE")


class explained:
    """Explain each statement on the large tables before it runs; needs a transaction."""

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []
        self._context = connection.execute_wrapper(self._explain)

    def __enter__(self) -> list[dict[str, Any]]:
        self._context.__enter__()
        return self.plans

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def _explain(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if any(table in sql for table in TABLES) and not sql.startswith(_WITHOUT_PLAN):
            self.plans.append(self._plan(execute, sql, params, context))
        return execute(sql, params, many, context)

    def _plan(self, execute: Any, sql: str, params: Any, context: Any) -> dict[str, Any]:
        cursor = context["cursor"]
        execute("SAVEPOINT explained", None, False, context)
        # A prepared statement follows its settings.
        settings, end, statement = sql.rpartition("; ")
        explain = f"{settings}{end}EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        execute(explain, params, False, context)
        while cursor.nextset():
            continue
        (answer,) = cursor.fetchone()
        execute("ROLLBACK TO SAVEPOINT explained", None, False, context)
        plan: dict[str, Any] = (answer if isinstance(answer, list) else json.loads(answer))[0]["Plan"]
        return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def pages(plan: dict[str, Any]) -> int:
    """Return how many pages the statement has read."""
    read: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return read
