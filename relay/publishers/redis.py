"""Publish a whole batch to Redis in one atomic round trip."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from outbox.brokers.redis_connection import Command, Connection, encode_commands, own_connection, read_reply
from outbox.brokers.unwritten import unwritten_key
from outbox.errors import BrokerUnavailable
from relay.deadlines import within
from relay.messages.dispatch_ids import OverdueDelivery, dispatch_id, possible_dispatch_ids
from relay.messages.single import OutgoingMessage

from .base import (
    PROBE_INTERVAL_S,
    EncodedMessage,
    Marker,
    Refusal,
    describe,
    emit_enqueued,
    encode_batch,
)
from .isolation import ConnectionDropped, IsolatingSender
from .redis_maintenance import is_maintenance_due, maintenance
from .redis_marker import RedisMarkerCheck, address
from .redis_memory import COMMAND as MEMORY
from .redis_memory import MemoryCheck

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 10.0

# Connect, send and receive share the time equally.
STEPS = 3


class RedisPublisher:
    """Write the same keys as `RedisBroker.enqueue`, by variadic commands in one transaction.

    The publisher has its own connection: the broker's may wait and retry for longer than a claim may last.
    """

    finds_messages = True

    def __init__(self, broker: RedisBroker) -> None:
        self.broker_name = address(broker)
        self.marker = RedisMarkerCheck(broker)
        self._broker = broker
        self._connection: Connection | None = None
        self._timeout_s = DEFAULT_TIMEOUT_S
        self._answered_at = 0.0
        self._memory_checked_at = 0.0
        self._memory = MemoryCheck()
        self._sender = IsolatingSender(send=self._send, probe=self._ping)

    def probe(self) -> None:
        """Ask for the memory of the server, also to detect a lost connection.

        Raises:
            BrokerFull: if the server has little memory left.
            BrokerUnavailable: if it does not answer.
        """
        if self._connection is None or time.monotonic() - self._memory_checked_at >= PROBE_INTERVAL_S:
            (reply,) = self._exchange([MEMORY])
            # A full server is asked again by the next probe.
            self._memory.check(reply)
            self._memory_checked_at = time.monotonic()

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> list[Refusal]:
        """Send the batch in one transaction; return the messages that were not sent.

        These are messages that cannot be encoded, messages over a limit of Redis's protocol, and all messages
        to a queue whose keys have another type.
        """
        deadline = time.monotonic() + timeout_s
        self._set_timeout(timeout_s)
        options = ({"redis_message_id": dispatch_id(one)} for one in outgoing)
        encoded_messages, refusals = encode_batch(self._broker, outgoing, options)
        if encoded_messages:
            refusals += self._sender.send(encoded_messages, deadline=deadline)
        return refusals

    def still_queued(
        self, overdue: Sequence[OverdueDelivery], *, timeout_s: float, after_loss: bool = False
    ) -> set[int]:
        """Return the deliveries whose message waits in Redis, or is with a live worker, or whose outcome is.

        Redis first requeues the messages of dead workers.
        """
        self._set_timeout(timeout_s)
        queues = list({row.queue: None for row in overdue})
        # Deliveries that may have shared a message share its id.
        ids = {row.delivery_id: [(row.queue, one) for one in possible_dispatch_ids(row)] for row in overdue}
        asked = list({pair: None for pairs in ids.values() for pair in pairs})
        upkeep = [maintenance(self._broker, queue, current_millis()) for queue in queues]
        found = [("HEXISTS", self._bodies(queue), one) for queue, one in asked]
        unwritten = unwritten_key(self._broker.namespace)
        announced = [("ZSCORE", unwritten, row.delivery_id) for row in overdue]
        answers = self._exchange([*upkeep, *found, *announced])[len(upkeep) :]
        _raise_error(answers)
        queued = {pair for pair, answer in zip(asked, answers, strict=False) if answer}
        present = {delivery for delivery, pairs in ids.items() if not queued.isdisjoint(pairs)}
        waiting = zip(overdue, answers[len(asked) :], strict=True)
        return present | {row.delivery_id for row, answer in waiting if answer}

    def check_marker(self) -> bool:
        """Return whether Redis lacks its marker, or is another server than the one that got it."""
        if self._connection is None or time.monotonic() - self._answered_at >= PROBE_INTERVAL_S:
            # A proxy may have changed the server behind this connection.
            self.marker.forget_server()
            self._ping()
        return self.marker.missing

    def make_marker(self, marker: Marker) -> None:
        """Set the key of the marker."""
        self.marker.expect(marker)
        self._ping()  # reads the run id, if it is not known
        _raise_error(self._exchange([self.marker.make(marker)]))

    def workers_have_outcomes(self) -> bool:
        """Return whether a worker has announced outcomes or long runs within the last 30 seconds."""
        answers = self._exchange([("EXISTS", unwritten_key(self._broker.namespace))])
        _raise_error(answers)
        return bool(answers[0])

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _set_timeout(self, timeout_s: float) -> None:
        if timeout_s != self._timeout_s:
            self.close()
            self._timeout_s = timeout_s

    def _bodies(self, queue: str) -> str:
        return f"{self._broker.namespace}:{queue}.msgs"

    def _ping(self) -> None:
        self._exchange([("PING",)])

    def _send(self, encoded_messages: Sequence[EncodedMessage]) -> list[Refusal]:
        queues = _by_queue(encoded_messages)
        refusals = []
        for queue, error in self._enqueue(queues).items():
            refusals += [Refusal(encoded.outgoing, describe(error)) for encoded in queues.pop(queue)]
        for sent in queues.values():
            emit_enqueued(self._broker, sent)
        return refusals

    def _enqueue(self, queues: Mapping[str, list[EncodedMessage]]) -> dict[str, ResponseError]:
        """Enqueue messages by queue; return the error of each queue that did not take its messages."""
        owners, commands = zip(*self._commands(queues), strict=True)
        *queued, done = self._exchange([("MULTI",), *commands, ("EXEC",)])
        for answer in (*queued, done):
            # Out of memory, read-only or still loading: Redis refuses every write.
            if isinstance(answer, ResponseError):
                self.close()
                raise BrokerUnavailable(describe(answer)) from answer
        failed: dict[str, ResponseError] = {}
        for owner, answer in zip(owners, done, strict=True):
            if isinstance(answer, ResponseError):
                if owner is None:
                    logger.warning("Redis refused maintenance while enqueueing: %s", describe(answer))
                else:
                    failed[owner] = answer
        return failed

    def _commands(self, queues: Mapping[str, list[EncodedMessage]]) -> Iterator[tuple[str | None, Command]]:
        """Yield the commands of dispatch.lua in its order, each with the queue that it writes, if any."""
        now, namespace = current_millis(), self._broker.namespace
        # A process that only enqueues counts as alive, too.
        yield None, ("ZADD", f"{namespace}:__heartbeats__", now, self._broker.broker_id)
        for queue, encoded_messages in queues.items():
            if is_maintenance_due(self._broker, len(encoded_messages)):
                yield None, maintenance(self._broker, queue, now)
            messages = [field for p in encoded_messages for field in (p.options["redis_message_id"], p.body)]
            yield queue, ("HSET", self._bodies(queue), *messages)
            yield queue, ("RPUSH", f"{namespace}:{queue}", *messages[::2])

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands at once and return the replies, including the errors of single commands.

        The same round trip checks the marker.
        """
        connection = self._connected()
        sent = [*commands, *self.marker.commands()]
        try:
            connection.send_packed_command(encode_commands(connection, sent))
            replies = [read_reply(connection) for _ in sent]
        except (RedisTimeout, TimeoutError) as error:
            self.close()
            raise BrokerUnavailable(describe(error)) from error
        except (RedisError, OSError) as error:
            self.close()
            raise ConnectionDropped(describe(error)) from error
        self._answered_at = time.monotonic()
        self.marker.note(replies[len(commands) :])
        return replies[: len(commands)]

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = own_connection(self._broker, self._timeout_s / STEPS)
            try:
                # No other timeout bounds the lookup of a name, several addresses, or the search for a master.
                within(self._timeout_s / STEPS, connection.connect, undo=connection.disconnect)
            except (RedisError, OSError) as error:
                raise BrokerUnavailable(describe(error)) from error
            self._connection = connection
            self.marker.forget_server()
        return self._connection


def _raise_error(answers: Iterable[Any]) -> None:
    """Raise the first error among the answers of Redis.

    Raises:
        BrokerUnavailable: from that error.
    """
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise BrokerUnavailable(describe(answer)) from answer


def _by_queue(encoded_messages: Iterable[EncodedMessage]) -> dict[str, list[EncodedMessage]]:
    queues: dict[str, list[EncodedMessage]] = defaultdict(list)
    for encoded in encoded_messages:
        queues[encoded.outgoing.template.queue_name].append(encoded)
    return queues
