"""The commands of one consumer: fetch with acknowledgements, return, heartbeats and maintenance."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.logging import get_logger
from redis.exceptions import RedisError

from .dispatch_script import DispatchScript
from .local_queue import LocalQueue
from .redis_connection import Command, own_connection

if TYPE_CHECKING:
    from .redis import RedisBroker

TIMEOUT_S = 5.0
# Heartbeats are sent this many times in a heartbeat timeout.
HEARTBEATS_PER_TIMEOUT = 3
# The messages of a dead worker return to the queue this long after its heartbeat has timed out, at most.
MAINTENANCE_INTERVAL_S = 4.0
# The rest of the maintenance, such as the expiry of dead letters.
FULL_MAINTENANCE_INTERVAL_S = 300.0


class QueueCommands:
    """Sends the commands for one queue on a connection that neither waits for long nor tries again.

    Threads that acknowledge messages use it beside the consumer's thread.
    """

    def __init__(self, broker: RedisBroker, queue_name: str, local: LocalQueue) -> None:
        self.logger = get_logger(__name__, type(self))
        self._broker = broker
        self._queue_name = queue_name
        self._local = local
        self._script = DispatchScript(broker)
        self._connection = own_connection(broker, TIMEOUT_S)
        self._sending = threading.RLock()
        self._heartbeat_s: float = broker.heartbeat_timeout / 1000 / HEARTBEATS_PER_TIMEOUT
        self._heartbeat_at = 0.0
        self._maintenance_at = time.monotonic() + self._maintenance_interval_s
        self._full_maintenance_at = time.monotonic() + FULL_MAINTENANCE_INTERVAL_S
        self._known_dead: set[bytes] = set()

    def fetch(self, count: int) -> tuple[list[MessageProxy], bool]:
        """Send all acknowledgements and fetch up to `count` messages, in one round trip.

        Returns:
            The messages, and whether the fetch emptied the queue.

        Raises:
            RedisError, OSError: if the connection breaks; the acknowledgements wait for the next fetch.
        """
        with self._sending:
            if self._local.may_have_lost_fetches:
                self._return_lost()
            acks = self._local.acks()
            fetch = self._call("fetch", count, maintenance=self._is_maintenance_due())
            # Until the reply is read.
            self._local.may_have_lost_fetches = True
            *_confirmed, bodies = self._run([*(self._call("ack", one) for one in acks), fetch])
            self._local.may_have_lost_fetches = False
        self._local.confirm_acks(acks)
        self._note_heartbeat()
        messages = list(self._decoded(bodies))
        self._local.start(message.options["redis_message_id"] for message in messages)
        return messages, len(bodies) < count

    def send_acks(self) -> None:
        """Send the acknowledgements of all threads, unless another thread is about to.

        While Redis is away, the acknowledgements wait.
        """
        while acks := self._local.acks():
            try:
                # Within the block: an interrupted thread releases the lock if it has got it.
                if not self._sending.acquire(blocking=False):
                    return
                self._run([self._call("ack", one) for one in acks])
                self._local.confirm_acks(acks)
                self._note_heartbeat()
            except (RedisError, OSError) as error:
                self._connection.disconnect()
                self.logger.warning("%d acknowledgements wait for Redis: %s", len(acks), error)
                return
            except BaseException:
                # An interrupt may have come between a command and its reply.
                self._connection.disconnect()
                raise
            finally:
                with suppress(RuntimeError):  # not this thread's
                    self._sending.release()

    def requeue(self, ids: Sequence[str]) -> None:
        """Return messages to the queue.

        Raises:
            ConnectionClosed: if Redis is away; the next consumer then returns them.
        """
        if not ids:
            return
        self.logger.debug("Re-enqueueing %r on queue %r.", ids, self._queue_name)
        try:
            self._broker.do_requeue(self._queue_name, *ids)
        except (RedisError, OSError) as error:
            self._local.may_have_lost_fetches = True
            raise ConnectionClosed(error) from None
        finally:
            self._local.forget(ids)

    def keep_alive(self) -> None:
        """Send acknowledgements, and when it is time a heartbeat, and maintain the queue.

        Raises:
            RedisError, OSError: if the connection breaks.
        """
        with self._sending:
            maintenance = self._is_maintenance_due()
            if maintenance or time.monotonic() >= self._heartbeat_at:
                # A call that changes nothing else.
                self._run([self._call("requeue", maintenance=maintenance)])
                self._note_heartbeat()
        # After the lock is free: a thread that found it taken has left its acknowledgement.
        self.send_acks()

    def close(self) -> None:
        """Close the connection."""
        with self._sending:
            self._connection.disconnect()

    def _call(self, command: str, *args: Any, maintenance: bool = False) -> Command:
        return self._script.call(command, self._queue_name, *args, maintenance=maintenance)

    def _run(self, calls: Sequence[Command]) -> list[Any]:
        return self._script.run(self._connection, calls)

    @property
    def _maintenance_interval_s(self) -> float:
        return min(MAINTENANCE_INTERVAL_S, self._heartbeat_s)

    def _note_heartbeat(self) -> None:
        self._heartbeat_at = time.monotonic() + self._heartbeat_s

    def _decoded(self, bodies: Iterable[bytes | None]) -> Iterator[MessageProxy]:
        for body in bodies:
            try:
                # The body of a message that was purged is missing.
                if body is not None:
                    yield MessageProxy(Message.decode(body))
            except DecodeError:
                self.logger.critical(
                    "A message of queue %r cannot be decoded.", self._queue_name, exc_info=True
                )

    def _return_lost(self) -> None:
        """Return messages to the queue that Redis counts as fetched by this process, and it does not have."""
        key = f"{self._broker.namespace}:__acks__.{self._broker.broker_id}.{self._queue_name}"
        (fetched,) = self._run([("SMEMBERS", key)])
        lost = self._local.lost(one.decode() for one in fetched)
        if lost:
            self._run([self._call("requeue", *lost)])

    def _is_maintenance_due(self) -> bool:
        """Return whether a worker has died since the last maintenance of this queue, or all of it is due."""
        now = time.monotonic()
        if now < self._maintenance_at:
            return False
        self._maintenance_at = now + self._maintenance_interval_s
        if now >= self._full_maintenance_at:
            self._full_maintenance_at = now + FULL_MAINTENANCE_INTERVAL_S
            return True
        oldest_ms = int(time.time() * 1000) - self._broker.heartbeat_timeout
        heartbeats = f"{self._broker.namespace}:__heartbeats__"
        (dead,) = self._run([("ZRANGEBYSCORE", heartbeats, 0, oldest_ms)])
        known, self._known_dead = self._known_dead, set(dead)
        return not self._known_dead <= known
