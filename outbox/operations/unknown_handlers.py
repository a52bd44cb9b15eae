"""Deliveries of handlers that this process does not declare: their delays, and how reports name them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from outbox.errors import suggestion
from outbox.models import Delivery
from outbox.registry import registry

# The message option that counts how often processes without the handler have returned a delivery.
RETURNS_OPTION = "outbox_returns"

# In a rolling deployment the first delay is enough. It doubles at each return, as a renamed handler may
# never be declared again.
FIRST_DELAY = timedelta(seconds=30)
LONGEST_DELAY = timedelta(minutes=10)
_MAX_DOUBLINGS = 10

# Reports count at most this many deliveries of one handler.
COUNT_LIMIT = 100_000


def returned(options: Mapping[str, Any]) -> tuple[timedelta, dict[str, Any]]:
    """Return the delay of a delivery whose handler is unknown, and the options of its next message.

    Args:
        options: the options of its last message.
    """
    returns = options.get(RETURNS_OPTION)
    count = returns if isinstance(returns, int) and returns > 0 else 0
    delay = min(FIRST_DELAY * 2 ** min(count, _MAX_DOUBLINGS), LONGEST_DELAY)
    return delay, {**options, RETURNS_OPTION: count + 1}


def count_waiting(database: str, handler: str) -> int:
    """Return how many pending deliveries a handler has, up to `COUNT_LIMIT`."""
    pending = Delivery.objects.using(database).pending().filter(handler=handler).order_by()
    return int(pending.values("pk")[:COUNT_LIMIT].count())


def describe_waiting(handler: str, count: int) -> str:
    """Return the sentence with which logs and reports name the deliveries of an unknown handler."""
    number = f"at least {COUNT_LIMIT:,}" if count >= COUNT_LIMIT else f"{count:,}"
    waiting = "1 delivery waits" if count == 1 else f"{number} deliveries wait"
    return (
        f"{waiting} for handler {handler!r}, which no code declares{suggestion(handler, registry.handlers)}"
    )
