"""Publish a whole batch to RabbitMQ and wait for all confirms together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed
from pika.exceptions import AMQPError

from outbox.errors import BrokerUnavailable
from relay.deadlines import within
from relay.messages.dispatch_ids import OverdueDelivery
from relay.messages.single import OutgoingMessage

from .amqp import AmqpConnection
from .amqp_types import AmqpMessage
from .base import (
    PROBE_INTERVAL_S,
    PROBE_TIMEOUT_S,
    EncodedMessage,
    Marker,
    MarkerCheck,
    Refusal,
    describe,
    emit_enqueued,
    encode_batch,
)
from .rabbitmq_broker import address, declare
from .rabbitmq_queues import has_announcement, lacks_marker, make_marker

# RabbitMQ closes the channel with this code if a message is too large.
PRECONDITION_FAILED = 406

# In a queue with more messages than this, an overdue message may still wait for a worker.
DEEP_QUEUE = 1000

NACKED = "RabbitMQ did not take the message (nack); its queue may be full"

PERSISTENT: Final = 2
PLAIN = pika.BasicProperties(delivery_mode=PERSISTENT)


class RabbitmqPublisher:
    """Publish as `RabbitmqBroker.enqueue` does, but with confirms whatever `confirm_delivery` is.

    The publisher has its own connection: the broker's waits for one confirm at a time, if at all. The marker
    is a durable queue without messages.
    """

    finds_messages = False

    def __init__(self, broker: RabbitmqBroker) -> None:
        self.broker_name = address(broker)
        self.marker = MarkerCheck()
        self._broker = broker
        self._connection: AmqpConnection | None = None

    def probe(self) -> None:
        """Connect, or ping over a connection that has been idle."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        with self._dropping_a_broken_connection():
            connection = self._connected(deadline)
            if time.monotonic() - connection.answered_at >= PROBE_INTERVAL_S:
                self._ping(connection, deadline)

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> list[Refusal]:
        """Send the batch, wait for all confirms, and return the messages that RabbitMQ did not take.

        If a queue is missing, the publisher declares it and sends its messages once more.
        """
        deadline = time.monotonic() + timeout_s
        encoded_messages, refusals = encode_batch(self._broker, outgoing)
        with self._dropping_a_broken_connection():
            unroutable = self._send(encoded_messages, refusals, deadline)
            if unroutable:
                self._broker.queues_pending |= {q_name(p.outgoing.queue_name) for p in unroutable}
                for encoded in self._send(unroutable, refusals, deadline):
                    queue = encoded.outgoing.queue_name
                    refusals.append(
                        Refusal(encoded.outgoing, f"queue {queue!r} vanishes as soon as declared")
                    )
        refused = {id(refusal.outgoing) for refusal in refusals}
        emit_enqueued(self._broker, (p for p in encoded_messages if id(p.outgoing) not in refused))
        return refusals

    def still_queued(
        self, overdue: Sequence[OverdueDelivery], *, timeout_s: float, after_loss: bool = False
    ) -> set[int]:
        """Return the deliveries to deep queues: RabbitMQ has no lookup of a message.

        While a worker of a queue has outcomes that it cannot write, each delivery may be one of these.
        """
        deadline = time.monotonic() + timeout_s
        with self._dropping_a_broken_connection():
            connection = self._connected(deadline)
            queues = {row.queue for row in overdue}
            found = {queue for queue in queues if has_announcement(connection, queue, deadline)}
            if not after_loss:
                found |= {queue for queue in queues if connection.depth(queue, deadline) > DEEP_QUEUE}
        return {row.delivery_id for row in overdue if row.queue in found}

    def check_marker(self) -> bool:
        """Return whether RabbitMQ lacks the queue of the marker."""
        self.probe()
        return self.marker.missing

    def make_marker(self, marker: Marker) -> None:
        """Declare the queue of the marker."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        with self._dropping_a_broken_connection():
            make_marker(self._connected(deadline), marker, deadline)
        self.marker.expect(marker)

    def workers_have_outcomes(self) -> bool:
        """Return whether a worker has announced outcomes within the last 30 seconds."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        with self._dropping_a_broken_connection():
            connection = self._connected(deadline)
            return any(has_announcement(connection, queue, deadline) for queue in set(self._broker.queues))

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _send(
        self, encoded_messages: Iterable[EncodedMessage], refusals: list[Refusal], deadline: float
    ) -> list[EncodedMessage]:
        """Send messages, add those that cannot be sent to `refusals`, and return those without a queue."""
        connection = self._connected(deadline)
        pending_groups = [self._declared(encoded_messages, refusals, deadline)]
        unroutable: list[EncodedMessage] = []
        while pending_groups:
            group = pending_groups.pop()
            result = connection.send(map(_amqp_message, group), deadline)
            refusals += [Refusal(group[index].outgoing, error) for index, error in result.refused.items()]
            # RabbitMQ never nacks a message for its content.
            refusals += [Refusal(group[index].outgoing, NACKED, is_proved=False) for index in result.nacked]
            unroutable += [group[index] for index in result.unroutable]
            if result.closed_by is None:
                continue
            if result.closed_by.reply_code != PRECONDITION_FAILED:
                raise BrokerUnavailable(describe(result.closed_by)) from result.closed_by
            connection.open_channel(deadline)
            unconfirmed = [group[index] for index in result.unconfirmed.values()]
            if len(unconfirmed) == 1:
                refusals.append(Refusal(unconfirmed[0].outgoing, describe(result.closed_by)))
            else:
                # RabbitMQ closed the channel because of one of them. Bisection finds it within the deadline.
                middle = len(unconfirmed) // 2
                pending_groups += [unconfirmed[middle:], unconfirmed[:middle]]
        return unroutable

    def _connected(self, deadline: float) -> AmqpConnection:
        if self._connection is not None:
            self._connection.process_events()
            if not self._connection.is_open:
                self._drop_connection()
        if self._connection is None:
            self._connection = self._connect(deadline)
            if self.marker.expected is not None:
                # Before a message is published, so that no later message counts as lost.
                self._ping(self._connection, deadline)
        if self._connection.blocked is not None:
            raise BrokerUnavailable(f"RabbitMQ blocks publishers: {self._connection.blocked}")
        return self._connection

    def _ping(self, connection: AmqpConnection, deadline: float) -> None:
        """Wait for an answer of RabbitMQ, which also checks the marker."""
        if self.marker.expected is None:
            connection.ping(deadline)
        else:
            self.marker.missing = lacks_marker(connection, self.marker.expected, deadline)

    def _connect(self, deadline: float) -> AmqpConnection:
        """Connect to the first of the broker's hosts that answers."""
        parameters: Any = self._broker.parameters
        hosts = [parameters] if isinstance(parameters, pika.connection.Parameters) else list(parameters)
        while True:
            now = time.monotonic()
            try:
                return AmqpConnection(hosts[0], now + (deadline - now) / len(hosts))
            except BrokerUnavailable:
                if len(hosts) == 1:
                    raise
                del hosts[0]

    def _declared(
        self, encoded_messages: Iterable[EncodedMessage], refusals: list[Refusal], deadline: float
    ) -> list[EncodedMessage]:
        """Declare missing queues, add to `refusals`, and return the messages that have a queue."""
        group = list(encoded_messages)
        broker = self._broker
        queues = {encoded.outgoing.queue_name for encoded in group}
        pending = {q for q in queues if q not in broker.queues or q in broker.queues_pending}
        if not pending:
            return group
        # The broker knows the arguments of its queues, but has no timeout. After a timeout, its thread may
        # still declare them; it then removes only those queues from `queues_pending`. If a queue is deleted
        # in that moment, one more batch is unroutable, and the queue is pending again.
        try:
            errors = within(deadline - time.monotonic(), lambda: declare(broker, pending))
        except TimeoutError as late:
            raise BrokerUnavailable(describe(late)) from late
        refused = [encoded for encoded in group if encoded.outgoing.queue_name in errors]
        refusals += [Refusal(p.outgoing, errors[p.outgoing.queue_name]) for p in refused]
        return [encoded for encoded in group if encoded.outgoing.queue_name not in errors]

    @contextmanager
    def _dropping_a_broken_connection(self) -> Iterator[None]:
        try:
            yield
        except (AMQPError, ConnectionClosed, OSError) as error:
            self._drop_connection()
            raise BrokerUnavailable(describe(error)) from error
        except BaseException:
            # While RabbitMQ blocks publishers, a new connection would learn of it only when it publishes.
            if self._connection is not None and not (self._connection.is_open and self._connection.blocked):
                self._drop_connection()
            raise

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


def _amqp_message(encoded: EncodedMessage) -> AmqpMessage:
    priority = encoded.priority
    plain = priority is None
    properties = PLAIN if plain else pika.BasicProperties(delivery_mode=PERSISTENT, priority=priority)
    return AmqpMessage(encoded.outgoing.queue_name, encoded.body, properties)
