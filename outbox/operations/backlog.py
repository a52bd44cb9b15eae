"""The backlog by queue and handler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from outbox.models import Delivery
from outbox.models.handler_counts import count_by_handler
from outbox.registry import registry

from .health_report import COUNT_LIMIT

# The deliveries of handlers that this code does not declare; there may be any number of names.
OTHERS = "(others)"


class Backlog(NamedTuple):
    """The deliveries of one handler in one state.

    Args:
        queue: the queue of the handler; `OTHERS` for all handlers that the code does not declare.
        state: `pending`, `waiting`, `dispatched` or `failed`.
        deliveries: their number among the first `COUNT_LIMIT` of the state.
    """

    queue: str
    handler: str
    state: str
    deliveries: int


def backlogs(database: str) -> Iterator[Backlog]:
    """Yield the backlog of each declared handler, and one of all others, in four bounded statements."""
    deliveries = Delivery.objects.using(database)
    pending = deliveries.pending()
    # In the orders of the partial indexes.
    states: dict[str, Any] = {
        "pending": pending.filter(waits_for="").order_by("available_at", "id"),
        "waiting": pending.exclude(waits_for="").order_by("handler", "id"),
        "dispatched": deliveries.unconfirmed().order_by("confirm_by"),
        "failed": deliveries.failed().order_by("handler", "id"),
    }
    for state, rows in states.items():
        counts = count_by_handler(rows, limit=COUNT_LIMIT)
        for name, handler in registry.handlers.items():
            yield Backlog(handler.queue, name, state, counts.pop(name, 0))
        yield Backlog(OTHERS, OTHERS, state, sum(counts.values()))
