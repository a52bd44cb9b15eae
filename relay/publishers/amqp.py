"""A connection to RabbitMQ that publishes in bulk, with blocking calls.

Pika's blocking connection waits for the confirm of each message before it sends the next. The connection here
runs pika's asynchronous connection during each call, and returns when all messages of a batch are confirmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from outbox.errors import BrokerUnavailable

from .amqp_types import AmqpMessage, QueueRefused, SendResult, for_publishing
from .base import describe
from .coalescing import CoalescingServices

# How long the closing handshake of a connection may take.
CLOSE_TIMEOUT_S = 1.0

# RabbitMQ closes the channel with this code if a queue does not exist.
NOT_FOUND = 404


class AmqpConnection:
    """A connection with one channel in confirm mode."""

    def __init__(self, parameters: pika.connection.Parameters, deadline: float) -> None:
        self.blocked: str | None = None
        self.answered_at = 0.0
        loop: Any = IOLoop()
        self._loop = loop
        self._services = CoalescingServices(self._loop)
        self._ended: BaseException | None = None
        self._result = SendResult()
        self._returned: set[bytes] = set()
        self._tag = 0
        self._connection = self._connect(parameters, deadline)
        try:
            self._wait(lambda: self._connection.is_open, deadline)
            self.open_channel(deadline)
        except BaseException:
            self.abort()
            raise

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent, as far as is known without a round trip."""
        return self._ended is None and self._channel.is_open

    def open_channel(self, deadline: float) -> None:
        """Open a channel in confirm mode; it replaces a channel that RabbitMQ closed."""
        self._channel = self._connection.channel(on_open_callback=self._wake)
        self._channel.add_on_close_callback(self._on_channel_closed)
        self._channel.add_on_return_callback(self._on_returned)
        self._wait(lambda: self._channel.is_open or self._channel.is_closed, deadline)
        self._tag = 0
        self._call(lambda wake: self._channel.confirm_delivery(self._on_confirmed, callback=wake), deadline)

    def ping(self, deadline: float) -> None:
        """Wait for an answer of RabbitMQ."""
        # The cheapest request of a channel: it sets no limit, and there is none.
        self._call(lambda wake: self._channel.basic_qos(prefetch_count=0, callback=wake), deadline)

    def depth(self, queue: str, deadline: float) -> int:
        """Return how many messages of a queue wait for a worker; 0 if the queue does not exist."""
        try:
            answer = self._declare(queue, deadline, passive=True)
        except QueueRefused as refused:
            if refused.code != NOT_FOUND:
                raise
            return 0
        return int(answer.method.message_count)

    def lacks(self, queue: str, deadline: float) -> bool:
        """Return whether it is sure that RabbitMQ has no such queue, on any of its nodes."""
        try:
            self._declare(queue, deadline, passive=True)
        except QueueRefused as refused:
            # A queue whose node is down has the same code, and another text.
            return refused.code == NOT_FOUND and "no queue" in str(refused)
        return False

    def declare(self, queue: str, deadline: float, *, arguments: dict[str, Any]) -> int:
        """Declare a durable queue; return how many messages wait in it.

        Raises:
            QueueRefused: if RabbitMQ does not allow it.
        """
        answer = self._declare(queue, deadline, durable=True, arguments=arguments)
        return int(answer.method.message_count)

    def process_events(self) -> None:
        """Process the events that have arrived, without waiting."""
        self._run(lambda: False, time.monotonic())

    def send(self, amqp_messages: Iterable[AmqpMessage], deadline: float) -> SendResult:
        """Send messages and wait until RabbitMQ has confirmed all of them, or has closed the channel."""
        bodies = []
        result = self._result = SendResult()
        self._returned.clear()
        for index, message in enumerate(amqp_messages):
            bodies.append(message.body)
            try:
                self._channel.basic_publish(
                    "", message.queue, message.body, message.properties, mandatory=True
                )
            except Exception as error:
                if not self._channel.is_open:
                    raise
                result.refused[index] = describe(error)
            else:
                self._tag += 1
                result.unconfirmed[self._tag] = index
        self._wait(lambda: not result.unconfirmed or result.closed_by is not None, deadline)
        # RabbitMQ confirms a returned message as well. Its unique body identifies it.
        sent = range(len(bodies)) if self._returned else ()
        unconfirmed = set(result.unconfirmed.values())
        result.unroutable = [i for i in sent if bodies[i] in self._returned and i not in unconfirmed]
        return result

    def close(self) -> None:
        """Close the connection with a handshake."""
        if self._connection.is_open:
            self._connection.close()
            self._run(lambda: self._ended is not None, time.monotonic() + CLOSE_TIMEOUT_S)
        self.abort()

    def abort(self) -> None:
        """Cut the connection in any state, without a handshake."""
        transport = self._services.transport
        if transport is not None and not self._connection.is_closed:
            transport.cut(BrokerUnavailable("the relay has closed the connection"))
            self._run(lambda: self._ended is not None, time.monotonic() + CLOSE_TIMEOUT_S)
        self._loop.close()

    def _declare(self, queue: str, deadline: float, **options: Any) -> Any:
        """Declare a queue; if RabbitMQ closes the channel for that, open another one.

        Raises:
            QueueRefused: with the reason of RabbitMQ.
        """
        self._result = SendResult()
        try:
            return self._call(
                lambda wake: self._channel.queue_declare(queue, callback=wake, **options), deadline
            )
        except BrokerUnavailable:
            closed_by = self._result.closed_by
            if closed_by is None:
                raise
            self.open_channel(deadline)
            raise QueueRefused(describe(closed_by), code=closed_by.reply_code) from closed_by

    def _connect(self, parameters: pika.connection.Parameters, deadline: float) -> pika.SelectConnection:
        connection = pika.SelectConnection(
            for_publishing(parameters, deadline - time.monotonic()),
            on_open_callback=self._wake,
            on_open_error_callback=self._on_ended,
            on_close_callback=self._on_ended,
            custom_ioloop=self._services,
        )
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        return connection

    def _call(self, request: Callable[[Callable[[Any], None]], Any], deadline: float) -> Any:
        answers: list[Any] = []

        def wake(answer: Any) -> None:
            answers.append(answer)
            self._loop.stop()

        request(wake)
        self._wait(lambda: bool(answers) or self._channel.is_closed, deadline)
        if not answers:
            raise BrokerUnavailable("RabbitMQ closed the channel")
        return answers[0]

    def _wait(self, done: Callable[[], bool], deadline: float) -> None:
        """Run the event loop until `done`.

        Raises:
            BrokerUnavailable: if the connection ends, RabbitMQ blocks publishers, or the deadline passes.
        """
        finished = self._run(lambda: done() or self._ended is not None or self.blocked is not None, deadline)
        if done():
            self.answered_at = time.monotonic()
        elif self._ended is not None:
            raise BrokerUnavailable(describe(self._ended)) from self._ended
        elif finished:
            raise BrokerUnavailable(f"RabbitMQ blocks publishers: {self.blocked}")
        else:
            raise BrokerUnavailable("RabbitMQ did not answer in time")

    def _run(self, done: Callable[[], bool], deadline: float) -> bool:
        """Run the event loop at least once, until `done` or the deadline; return whether `done` is true."""
        while not done():
            remaining_s = deadline - time.monotonic()
            timer = self._loop.call_later(max(0, remaining_s), self._loop.stop)
            try:
                self._loop.start()
            finally:
                self._loop.remove_timeout(timer)
            if remaining_s <= 0:
                return done()
        return True

    def _wake(self, _: object) -> None:
        self._loop.stop()

    def _on_ended(self, _: object, error: BaseException) -> None:
        self._ended = error
        self._loop.stop()

    def _on_channel_closed(self, _: object, reason: Exception) -> None:
        if isinstance(reason, ChannelClosedByBroker):
            self._result.closed_by = reason
        self._loop.stop()

    def _on_blocked(self, _: object, frame: Any) -> None:
        self.blocked = frame.method.reason
        self._loop.stop()

    def _on_unblocked(self, _: object, __: object) -> None:
        self.blocked = None

    def _on_returned(self, _: object, __: object, ___: object, body: bytes) -> None:
        self._returned.add(body)

    def _on_confirmed(self, frame: Any) -> None:
        confirm = frame.method
        unconfirmed = self._result.unconfirmed
        tags = [confirm.delivery_tag]
        if confirm.multiple:
            tags = list(takewhile(lambda tag: tag <= confirm.delivery_tag, unconfirmed))
        for tag in tags:
            # A tag is unknown if its batch ended early because RabbitMQ blocked publishers.
            index = unconfirmed.pop(tag, None)
            if index is not None and isinstance(confirm, Basic.Nack):
                self._result.nacked.append(index)
        if not unconfirmed:
            self._loop.stop()
