"""The announcement of outcomes that a worker cannot write, in the worker's broker.

A relay cannot tell such a delivery from one whose message is lost: the message has left the broker, and the
table has no outcome. A worker that cannot reach the database can still reach its broker, so it says there
which deliveries must wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Set
from typing import Any, Self

from dramatiq import Broker

from outbox.brokers.unwritten import (
    ANNOUNCED_FOR_S,
    unwritten_key,
    unwritten_queue,
    unwritten_queue_arguments,
)
from outbox.confirmations import confirmations
from outbox.registry import registry

logger = logging.getLogger(__name__)

# An outcome that is buffered at two looks in a row is announced. Usually it is written within 0.1 s.
INTERVAL_S = 2.0
# Ids of one call of the script.
CHUNK = 1000
# The clock of the server decides, as the clocks of workers may differ.
ANNOUNCE_SCRIPT = f"""
local now = tonumber(redis.call("TIME")[1])
for _, id in ipairs(ARGV) do redis.call("ZADD", KEYS[1], now, id) end
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - {ANNOUNCED_FOR_S})
redis.call("EXPIRE", KEYS[1], {ANNOUNCED_FOR_S})
"""
# The thread of a worker that ends may be sending.
STOP_TIMEOUT_S = 5.0


class UnwrittenOutcomes:
    """The thread of one worker that announces its unwritten outcomes, and its long runs.

    Args:
        running: returns the deliveries that run now.
        interval_s: the time between two looks.
    """

    def __init__(
        self, broker: Broker, *, running: Callable[[], set[int]], interval_s: float = INTERVAL_S
    ) -> None:
        self._broker = broker
        self._announce = announcer_for(broker)
        self._running = running
        self._interval_s = interval_s
        self._before: set[int] = set()
        self._reports_failure = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-unwritten", daemon=True)

    def start(self) -> Self:
        """Start the thread, if the broker takes announcements."""
        if self._announce is not None:
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; the announcements end by their age."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def look(self) -> None:
        """Announce the deliveries that had an outcome or ran at the last look, too."""
        outcomes, runs = confirmations.unwritten(), self._running()
        # A run at the last look may be an outcome now.
        before, self._before = self._before, outcomes.keys() | runs
        handlers = {pk: handler for pk, handler in outcomes.items() if pk in before}
        long_runs = (runs & before) - handlers.keys()
        if self._announce is not None and (handlers or long_runs):
            self._announce(self._broker, handlers, long_runs)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.look()
                self._reports_failure = True
            except Exception as error:
                # Broker and database are away, usually: nothing can be lost or redelivered meanwhile.
                if self._reports_failure:
                    logger.warning("could not announce unwritten outcomes: %r", error)
                self._reports_failure = False


Announcer = Callable[[Any, Mapping[int, str], Set[int]], None]


def announcer_for(broker: Broker) -> Announcer | None:
    """Return the function that announces in a broker; None if a relay looks for nothing there."""
    # Compared by name: the client libraries of the other brokers need not be installed.
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(broker).__mro__}
    if "dramatiq.brokers.redis.RedisBroker" in classes:
        return _announce_in_redis
    if "dramatiq.brokers.rabbitmq.RabbitmqBroker" in classes:
        return _announce_in_rabbitmq
    return None


def _announce_in_redis(broker: Any, unwritten: Mapping[int, str], long_runs: Set[int]) -> None:
    key, ids = unwritten_key(broker.namespace), [*unwritten, *long_runs]
    with broker.client.pipeline(transaction=False) as pipeline:
        for start in range(0, len(ids), CHUNK):
            pipeline.eval(ANNOUNCE_SCRIPT, 1, key, *ids[start : start + CHUNK])
        pipeline.execute()


def _announce_in_rabbitmq(broker: Any, unwritten: Mapping[int, str], long_runs: Set[int]) -> None:
    """Announce the queues of unwritten outcomes: RabbitMQ has no look-up of their ids."""
    handlers = [handler for name in set(unwritten.values()) if (handler := registry.find(name))]
    if not handlers:
        return
    try:
        for queue in {unwritten_queue(handler.queue) for handler in handlers}:
            broker.channel.queue_declare(queue, durable=True, arguments=unwritten_queue_arguments())
            broker.channel.basic_publish("", queue, b"")
    finally:
        # Nothing would answer the server's heartbeats until the next announcement.
        del broker.connection
