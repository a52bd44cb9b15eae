"""Publish a whole batch to RabbitMQ and wait for all confirms together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeGuard

import pika
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.common import dq_name, q_name
from dramatiq.errors import ConnectionClosed
from pika.exceptions import AMQPChannelError, AMQPError

from outbox.errors import BrokerUnavailable
from relay.copies import Overdue
from relay.deadlines import within
from relay.messages import Outgoing
from relay.publishers.amqp import Letter, Link
from relay.publishers.base import (
    DEEP_QUEUE,
    PROBE_INTERVAL_S,
    PROBE_TIMEOUT_S,
    Parcel,
    Refusal,
    describe,
    pack,
    unpack,
)

# RabbitMQ closes the channel with this code over a message that is too large.
PRECONDITION_FAILED = 406

PERSISTENT: Final = 2
PLAIN = pika.BasicProperties(delivery_mode=PERSISTENT)


class RabbitmqPublisher:
    """Publish as `RabbitmqBroker.enqueue` does, but confirmed whatever `confirm_delivery` says.

    The connection is one of its own, as the broker's waits for one confirm at a time, if at all.
    """

    def __init__(self, broker: RabbitmqBroker) -> None:
        self._broker = broker
        self._link: Link | None = None

    def probe(self) -> None:
        """Connect, or see whether a connection that has been idle still stands."""
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        with self._dropping_a_broken_link():
            link = self._connected(deadline)
            if time.monotonic() - link.answered_at >= PROBE_INTERVAL_S:
                link.ping(deadline)

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> list[Refusal]:
        """Send the batch, wait for all confirms, and return the messages that RabbitMQ did not take.

        Those of a queue that has gone are sent once more after it has been declared again.
        """
        deadline = time.monotonic() + timeout_s
        parcels, refusals = pack(self._broker, outgoing)
        with self._dropping_a_broken_link():
            unroutable = self._send(parcels, refusals, deadline)
            if unroutable:
                self._broker.queues_pending |= {q_name(p.outgoing.queue_name) for p in unroutable}
                for parcel in self._send(unroutable, refusals, deadline):
                    queue = parcel.outgoing.queue_name
                    refusals.append(Refusal(parcel.outgoing, f"queue {queue!r} vanishes as soon as declared"))
        refused = {id(refusal.outgoing) for refusal in refusals}
        unpack(self._broker, (p for p in parcels if id(p.outgoing) not in refused))
        return refusals

    def holds(self, overdue: Sequence[Overdue], *, timeout_s: float) -> set[int]:
        """Return the deliveries of queues that are deep, as RabbitMQ cannot be asked about a message."""
        deadline = time.monotonic() + timeout_s
        with self._dropping_a_broken_link():
            link = self._connected(deadline)
            depths = {
                queue: sum(link.depth(name, deadline) for name in (queue, dq_name(queue)))
                for queue in {row.queue for row in overdue}
            }
        # The depth is one of messages; what counts is how long it takes to work them off.
        return {row.delivery_id for row in overdue if depths[row.queue] * max(row.pack, 1) > DEEP_QUEUE}

    def close(self) -> None:
        """Close the connection."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _send(self, parcels: Iterable[Parcel], refusals: list[Refusal], deadline: float) -> list[Parcel]:
        """Send what can be sent, add the rest to `refusals`, and return what reached no queue."""
        link = self._connected(deadline)
        heaps = [self._declared(parcels, refusals, deadline)]
        unroutable: list[Parcel] = []
        while heaps:
            heap = heaps.pop()
            sent = link.send(map(_letter, heap), deadline)
            refusals += [Refusal(heap[place].outgoing, error) for place, error in sent.refused.items()]
            unroutable += [heap[place] for place in sent.unroutable]
            if sent.closed_by is None:
                continue
            if sent.closed_by.reply_code != PRECONDITION_FAILED:
                raise BrokerUnavailable(describe(sent.closed_by)) from sent.closed_by
            link.open_channel(deadline)
            suspects = [heap[place] for place in sent.unsettled.values()]
            if len(suspects) == 1:
                refusals.append(Refusal(suspects[0].outgoing, describe(sent.closed_by)))
            else:
                # One of them is at fault. Halves find it soon enough to stay within the deadline.
                middle = len(suspects) // 2
                heaps += [suspects[middle:], suspects[:middle]]
        return unroutable

    def _connected(self, deadline: float) -> Link:
        if self._link is not None:
            self._link.pump()
            if not self._link.is_open:
                self._drop_link()
        if self._link is None:
            self._link = self._connect(deadline)
        if self._link.blocked is not None:
            raise BrokerUnavailable(f"RabbitMQ blocks publishers: {self._link.blocked}")
        return self._link

    def _connect(self, deadline: float) -> Link:
        """Connect to the first of the broker's hosts that answers."""
        parameters: Any = self._broker.parameters
        hosts = [parameters] if isinstance(parameters, pika.connection.Parameters) else list(parameters)
        while True:
            now = time.monotonic()
            try:
                return Link(hosts[0], now + (deadline - now) / len(hosts))
            except BrokerUnavailable:
                if len(hosts) == 1:
                    raise
                del hosts[0]

    def _declared(self, parcels: Iterable[Parcel], refusals: list[Refusal], deadline: float) -> list[Parcel]:
        """Declare the queues that need it, add to `refusals`, and return the parcels that have a queue."""
        heap = list(parcels)
        broker = self._broker
        queues = {parcel.outgoing.queue_name for parcel in heap}
        pending = {q for q in queues if q not in broker.queues or q in broker.queues_pending}
        if not pending:
            return heap
        # The broker knows how its queues are made, but not how to stop waiting. One that was given up may
        # yet declare them, and then takes from those pending only what is there. A queue that vanishes again
        # in that very moment is sent to in vain once more, after which it is pending anew.
        try:
            errors = within(deadline - time.monotonic(), lambda: _declare(broker, pending))
        except TimeoutError as late:
            raise BrokerUnavailable(describe(late)) from late
        refused = [parcel for parcel in heap if parcel.outgoing.queue_name in errors]
        refusals += [Refusal(p.outgoing, errors[p.outgoing.queue_name]) for p in refused]
        return [parcel for parcel in heap if parcel.outgoing.queue_name not in errors]

    @contextmanager
    def _dropping_a_broken_link(self) -> Iterator[None]:
        try:
            yield
        except (AMQPError, ConnectionClosed, OSError) as error:
            self._drop_link()
            raise BrokerUnavailable(describe(error)) from error
        except BaseException:
            # While RabbitMQ blocks publishers a new connection would look fine, until it publishes.
            if self._link is not None and not (self._link.is_open and self._link.blocked):
                self._drop_link()
            raise

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()


def knows(broker: Broker) -> TypeGuard[RabbitmqBroker]:
    """Say whether this broker enqueues the way this module does."""
    return (
        isinstance(broker, RabbitmqBroker)
        and type(broker).enqueue is RabbitmqBroker.enqueue
        and "enqueue" not in vars(broker)
    )


def _letter(parcel: Parcel) -> Letter:
    priority = parcel.priority
    plain = priority is None
    properties = PLAIN if plain else pika.BasicProperties(delivery_mode=PERSISTENT, priority=priority)
    return Letter(parcel.outgoing.queue_name, parcel.body, properties)


def _declare(broker: RabbitmqBroker, queues: Iterable[str]) -> dict[str, str]:
    """Declare queues through the broker; return those that cannot be declared, and why."""
    errors = {}
    try:
        for queue in queues:
            try:
                broker.declare_queue(queue, ensure=True)
            except ConnectionClosed as error:
                # Such as a queue that exists with other arguments. Anything else concerns them all.
                if not isinstance(error.message, AMQPChannelError):
                    raise
                errors[queue] = describe(error.message)
    finally:
        # The broker keeps a connection for each thread, and this one ends here.
        del broker.connection
    return errors
