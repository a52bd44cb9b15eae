"""A broker in the memory of a relay's process, for development and small sites."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import dramatiq.worker
from dramatiq import Broker, Consumer, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.errors import QueueNotFound

from outbox.errors import EmbeddedBrokerError

from .local_queue import PREFETCH_PER_THREAD, LocalQueue

# The messages in memory at most. A claim costs several round trips, after each of which the relay waits for
# other threads of the process, so it fetches many short messages at once.
MOST = 500


class EmbeddedMessage(MessageProxy):
    """A message in memory.

    Args:
        database: the alias of the database of its deliveries.
        deliveries: their ids.
    """

    def __init__(self, message: Message[Any], *, database: str, deliveries: Sequence[int]) -> None:
        super().__init__(message)
        self.database = database
        self.deliveries = deliveries

    @property
    def memory_id(self) -> str:
        """The identity of this message; another message of the same delivery has another one."""
        return str(id(self))


class EmbeddedBroker(Broker):
    """A broker without a server: `run_relay --with-worker` fills it and runs its messages in one process.

    It holds only messages of the outbox, whose table repeats them if the process dies. A message of a
    `TransactionalActor` that is enqueued in another way than by `send` (pipelines, callbacks) is written to
    the outbox. A message of any other actor is refused, since it would vanish with the process.

    Args:
        middleware: as in Dramatiq.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, middleware: list[Middleware] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(middleware)
        self._prefetch = 0
        self._local = LocalQueue(clock=clock)
        self._unfinished: dict[str, EmbeddedMessage] = {}

    # ---------------------------------------------------------------- Dramatiq's interface

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, unless it exists; no queue has another one for delayed messages."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = queue.SimpleQueue()
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Write the message of a `TransactionalActor` to the outbox.

        Args:
            delay: milliseconds, as in Dramatiq.

        Raises:
            EmbeddedBrokerError: if the message is another actor's.
            PublishError: as `publish()` does.
        """
        self.emit_before("enqueue", message, delay)
        publish = getattr(self.get_actor(message.actor_name), "publish_message", None)
        if publish is None:
            raise EmbeddedBrokerError(
                f"actor {message.actor_name!r} sends without the outbox, and EmbeddedBroker has no server "
                "that would keep the message; declare the actor with actor_class=TransactionalActor, or set "
                "DRAMATIQ_BROKER to a broker with a server"
            )
        publish(message, delay)
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer of a queue in this process.

        Args:
            prefetch: not used, since the relay fetches.
            timeout: the longest wait for a message, in milliseconds.

        Raises:
            EmbeddedBrokerError: if this process is no relay.
            QueueNotFound: if the queue is not declared.
        """
        if not self._prefetch:
            raise EmbeddedBrokerError(
                "EmbeddedBroker has no messages for a worker of its own process; run `manage.py run_relay "
                "--with-worker` instead, or set DRAMATIQ_BROKER to a broker with a server"
            )
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return _Consumer(self.queues[queue_name], timeout_s=timeout / 1000, finish=self._finish)

    def flush(self, queue_name: str) -> None:
        """Do nothing: the outbox repeats its messages."""

    def flush_all(self) -> None:
        """Do nothing: the outbox repeats its messages."""

    # ---------------------------------------------------------------- the relay's interface

    @property
    def is_open(self) -> bool:
        """Whether a worker of this process runs the messages."""
        return self._prefetch > 0

    def open(self, threads: int) -> None:
        """Take messages from now on.

        Args:
            threads: the number of worker threads.
        """
        self._prefetch = dramatiq.worker.QUEUE_PREFETCH or threads * PREFETCH_PER_THREAD
        self._local.threads = threads

    def close(self) -> None:
        """Take no more messages."""
        self._prefetch = 0

    def take_unstarted(self) -> list[EmbeddedMessage]:
        """Remove the messages that no thread has begun to run, and return them."""
        unstarted: list[EmbeddedMessage] = []
        for messages in self.queues.values():
            with suppress(queue.Empty):
                while True:
                    unstarted.append(messages.get_nowait())
        for message in unstarted:
            self._finish(message)
        return unstarted

    def wait_for_room(self, timeout_s: float) -> int:
        """Wait until messages may be added; return how many, 0 after a timeout without room."""
        return self._local.wait_for_room(self._prefetch, timeout_s, most=MOST)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until all messages have run; return whether they have."""
        with self._local.changed:
            return self._local.changed.wait_for(lambda: not len(self._local), timeout_s)

    def add(self, messages: Iterable[EmbeddedMessage]) -> None:
        """Add messages to their queues."""
        added = {message.memory_id: message for message in messages}
        self._unfinished |= added
        self._local.start(added)
        for message in added.values():
            self.queues[message.queue_name].put(message)

    def deliveries(self) -> set[int]:
        """Return the deliveries whose messages are queued or run."""
        return {one for message in list(self._unfinished.values()) for one in message.deliveries}

    def _finish(self, message: EmbeddedMessage) -> None:
        self._unfinished.pop(message.memory_id, None)
        self._local.finish(message.memory_id, ack=False)


class _Consumer(Consumer):
    """Returns the messages of one queue to the worker's threads."""

    def __init__(
        self,
        messages: queue.SimpleQueue[EmbeddedMessage],
        *,
        timeout_s: float,
        finish: Callable[[EmbeddedMessage], object],
    ) -> None:
        self._messages = messages
        self._timeout_s = timeout_s
        self._finish = finish

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if none came in time."""
        try:
            return self._messages.get(timeout=self._timeout_s)
        except queue.Empty:
            return None

    def ack(self, message: MessageProxy) -> None:
        """Forget a message that has run."""
        self._finish(message)  # type: ignore[arg-type]  # only such messages are added

    # A failed message has an outcome in the table, and no dead letter.
    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Return messages that were not run to the queue."""
        for message in messages:
            self._messages.put(message)  # type: ignore[arg-type]
