"""The names under which workers announce in their broker that they have outcomes without a database."""

from __future__ import annotations

# A worker that does not repeat its announcement for this time is dead.
ANNOUNCED_FOR_S = 30

# RabbitMQ deletes a queue of announcements that nobody has used for this time.
UNUSED_FOR_MS = 600_000


def unwritten_key(namespace: str) -> str:
    """Return the key of a sorted set in Redis: the ids of deliveries that workers run or have run.

    The databases of one namespace share the key. A delivery with the id of another one only waits longer.
    """
    return f"{namespace}:__outbox_unwritten__"


def unwritten_queue(queue: str) -> str:
    """Return the queue in RabbitMQ that keeps one message, as long as a worker of a queue repeats it."""
    return f"{queue}.unwritten"


def unwritten_queue_arguments() -> dict[str, int]:
    """Return the arguments with which workers and relays declare such a queue."""
    return {"x-message-ttl": ANNOUNCED_FOR_S * 1000, "x-max-length": 1, "x-expires": UNUSED_FOR_MS}
