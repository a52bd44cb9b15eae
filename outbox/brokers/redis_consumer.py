"""A consumer of one queue in Redis that blocks on the server instead of polling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dramatiq import Consumer
from dramatiq.broker import MessageProxy
from dramatiq.common import compute_backoff
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from .local_queue import PREFETCH_PER_THREAD, LocalQueue
from .queue_commands import QueueCommands
from .redis_connection import Command, encode_commands, own_connection, read_reply

if TYPE_CHECKING:
    from .redis import RedisBroker

# How long a wait lasts before Dramatiq's thread can see that it is to stop.
SLICE_S = 0.1
# How long the server blocks, and how much later its answer may come.
BLOCK_S = 5.0
ANSWER_MARGIN_S = 5.0


class BlockingConsumer(Consumer):
    """Fetches the messages of one queue, and sends their acknowledgements, in few round trips.

    While the queue is empty, `BLMOVE key key RIGHT RIGHT` blocks on the server and changes nothing. A push
    wakes every consumer that blocks. A consumer that then gets no message pauses, longer each time, as
    Dramatiq does between two polls. So many idle processes do not all wake for each message.

    Args:
        prefetch: how many messages may be fetched and not yet acknowledged.
        timeout_s: the longest pause.
        local: the fetched messages and the acknowledgements of this process.
    """

    def __init__(
        self, broker: RedisBroker, queue_name: str, *, prefetch: int, timeout_s: float, local: LocalQueue
    ) -> None:
        self.logger = get_logger(__name__, type(self))
        self.queue_name = queue_name
        self._broker = broker
        self._prefetch = prefetch
        self._timeout_ms = int(timeout_s * 1000)
        self._local = local
        local.threads = max(prefetch // PREFETCH_PER_THREAD, 1)
        self._commands = QueueCommands(broker, queue_name, local)
        self._messages: deque[MessageProxy] = deque()
        self._blocking = own_connection(broker, BLOCK_S + ANSWER_MARGIN_S)
        self._can_block = True
        self._answer_until: float | None = None
        self._pause_until: float | None = None
        self._misses = 0
        # The last fetch has emptied the queue.
        self._is_drained = False
        # The consumer's thread waits, so that the threads that acknowledge have to send for themselves.
        self._is_idle = False

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if none came within a slice of time.

        Raises:
            ConnectionClosed: if the connection breaks.
        """
        try:
            if not self._messages:
                self._wait_or_fetch()
        except (RedisError, OSError) as error:
            self._disconnect()
            raise ConnectionClosed(error) from None
        return self._messages.popleft() if self._messages else None

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message: with the next fetch, or at once while the consumer is idle."""
        self._local.finish(message.options["redis_message_id"], ack=True)
        if self._is_idle:
            self._commands.send_acks()

    def nack(self, message: MessageProxy) -> None:
        """Move a message to the dead letters.

        Raises:
            ConnectionClosed: if Redis is away.
        """
        redis_id = message.options["redis_message_id"]
        try:
            self._broker.do_nack(self.queue_name, redis_id)
        except (RedisError, OSError) as error:
            raise ConnectionClosed(error) from None
        self._local.finish(redis_id, ack=False)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Return messages that were not run to the queue.

        Raises:
            ConnectionClosed: if Redis is away; the next consumer then returns them.
        """
        self._commands.requeue([message.options["redis_message_id"] for message in messages])

    def close(self) -> None:
        """Send all acknowledgements, and return the messages that no thread has got."""
        unread, self._messages = self._messages, deque()
        try:
            self.requeue(unread)
        except ConnectionClosed as error:
            self.logger.warning("%d messages wait for Redis: %s", len(unread), error)
        self._become_idle()
        self._disconnect()

    # ---------------------------------------------------------------- waiting

    def _wait_or_fetch(self) -> None:
        """Wait for a slice of time, for messages or for room; fetch if there are both."""
        blocks = self._answer_until is not None and not self._has_woken()
        if blocks or (self._pause_until is not None and not self._has_paused()):
            self._commands.keep_alive()
        elif self._is_drained and self._can_block:
            self._block()
        elif not (room := self._local.wait_for_room(self._prefetch, SLICE_S)):
            self._commands.keep_alive()
        else:
            self._fetch(room)

    def _fetch(self, room: int) -> None:
        self._is_idle = False
        messages, self._is_drained = self._commands.fetch(room)
        self._messages.extend(messages)
        if messages:
            self._misses = 0
        elif self._misses or not self._can_block:
            self._pause()

    def _become_idle(self) -> None:
        self._is_idle = True
        # After the flag: a thread that has read it before left its acknowledgement to this thread.
        self._commands.send_acks()

    def _pause(self) -> None:
        """Begin a pause, since another process was faster, or since Redis cannot block."""
        self._misses, pause_ms = compute_backoff(self._misses, max_backoff=self._timeout_ms)
        self._pause_until = time.monotonic() + pause_ms / 1000
        self._become_idle()

    def _has_paused(self) -> bool:
        """Wait for a slice of the pause; return whether it is over."""
        left_s = (self._pause_until or 0.0) - time.monotonic()
        if left_s > 0:
            time.sleep(min(left_s, SLICE_S))
        if left_s > SLICE_S:
            return False
        self._pause_until = None
        return True

    def _block(self) -> None:
        """Let the server answer when the queue has a message, or after `BLOCK_S`."""
        self._is_drained = False
        self._become_idle()
        key = f"{self._broker.namespace}:{self.queue_name}"
        command: Command = ("BLMOVE", key, key, "RIGHT", "RIGHT", BLOCK_S)
        self._blocking.send_packed_command(encode_commands(self._blocking, [command]))
        self._answer_until = time.monotonic() + BLOCK_S + ANSWER_MARGIN_S

    def _has_woken(self) -> bool:
        """Wait for the server's answer for a slice of time; return whether a fetch may find messages.

        Raises:
            TimeoutError: if the server has not answered in time.
        """
        if not self._blocking.can_read(timeout=SLICE_S):
            if time.monotonic() > (self._answer_until or 0.0):
                raise TimeoutError(f"Redis has not answered BLMOVE within {BLOCK_S + ANSWER_MARGIN_S:g} s")
            return False
        self._answer_until = None
        answer = read_reply(self._blocking)
        if isinstance(answer, ResponseError):
            # Redis before 6.2 does not know the command, and an access list may forbid it.
            if not isinstance(answer, NoPermissionError) and "unknown command" not in str(answer):
                raise answer
            self.logger.info("Polling queue %r, since Redis refuses to block: %s", self.queue_name, answer)
            self._can_block = False
            return True
        if answer is None:
            # No push, so no other process was faster.
            self._misses = 0
            self._block()
            return False
        # A fetch that finds nothing from here on is a miss.
        self._misses = max(self._misses, 1)
        return True

    def _disconnect(self) -> None:
        self._answer_until = None
        self._blocking.disconnect()
        self._commands.close()
