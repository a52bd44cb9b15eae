"""A `RedisBroker` whose consumers block on the server, fetch many messages and acknowledge many."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dramatiq.brokers.redis
from dramatiq import Consumer
from dramatiq.common import dq_name, q_name
from redis.connection import ConnectionPool

from .local_queue import LocalQueue
from .redis_consumer import BlockingConsumer


class RedisBroker(dramatiq.brokers.redis.RedisBroker):
    """Dramatiq's `RedisBroker`, compatible with it on the server in both directions.

    Processes with either broker may enqueue to, and consume from, the same queues. The arguments are those of
    Dramatiq's broker, and `clock`, which returns monotonic seconds. If the client has no connection pool, or
    if Redis is older than 6.2, the consumers poll as Dramatiq's do.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._clock = clock
        self._local_queues: dict[str, LocalQueue] = {}

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue; messages of delay queues are fetched as Dramatiq does.

        Args:
            queue_name: the queue.
            prefetch: how many messages may be fetched and not yet acknowledged; short messages raise it.
            timeout: the longest wait between two polls where the consumer cannot block, in milliseconds.
        """
        is_delay_queue = queue_name == dq_name(q_name(queue_name))
        has_pool = isinstance(getattr(self.client, "connection_pool", None), ConnectionPool)
        if is_delay_queue or not has_pool:
            return super().consume(queue_name, prefetch, timeout)
        local = self.local_queue(queue_name)
        return BlockingConsumer(self, queue_name, prefetch=prefetch, timeout_s=timeout / 1000, local=local)

    def local_queue(self, queue_name: str) -> LocalQueue:
        """Return the messages of a queue that this process has fetched.

        They belong to the broker, since Dramatiq replaces a consumer after an error.
        """
        return self._local_queues.setdefault(queue_name, LocalQueue(clock=self._clock))
