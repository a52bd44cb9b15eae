"""A connection to RabbitMQ that publishes in bulk and is called like a function.

pika's blocking connection waits for the confirm of each message before it sends the next. This one drives
pika's asynchronous connection from call to call instead, and returns when all of a batch are confirmed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, NamedTuple

import pika
from pika.adapters.select_connection import IOLoop
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from outbox.errors import BrokerUnavailable
from relay.publishers.base import describe
from relay.publishers.coalescing import CoalescingServices

# How long a connection may take to say goodbye.
CLOSE_TIMEOUT_S = 1.0

# RabbitMQ closes the channel with this code over a queue that does not exist.
NOT_FOUND = 404


class Letter(NamedTuple):
    """A message with what RabbitMQ needs to know to route it."""

    queue: str
    body: bytes
    properties: pika.BasicProperties


class Sent:
    """What became of a batch of letters, each named by its place in the batch."""

    def __init__(self) -> None:
        self.unsettled: dict[int, int] = {}  # delivery tag → place, in the order of sending
        self.refused: dict[int, str] = {}
        self.unroutable: list[int] = []
        self.closed_by: ChannelClosedByBroker | None = None


class Link:
    """A connection with one channel in confirm mode."""

    def __init__(self, parameters: pika.connection.Parameters, deadline: float) -> None:
        self.blocked: str | None = None
        self.answered_at = 0.0
        loop: Any = IOLoop()
        self._loop = loop
        self._services = CoalescingServices(self._loop)
        self._ended: BaseException | None = None
        self._sent = Sent()
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
        """Whether messages can be sent, as far as is known without asking."""
        return self._ended is None and self._channel.is_open

    def open_channel(self, deadline: float) -> None:
        """Open a channel in confirm mode, in place of one that RabbitMQ closed."""
        self._channel = self._connection.channel(on_open_callback=self._wake)
        self._channel.add_on_close_callback(self._on_channel_closed)
        self._channel.add_on_return_callback(self._on_returned)
        self._wait(lambda: self._channel.is_open or self._channel.is_closed, deadline)
        self._tag = 0
        self._ask(lambda wake: self._channel.confirm_delivery(self._on_confirmed, callback=wake), deadline)

    def ping(self, deadline: float) -> None:
        """Make sure that RabbitMQ answers."""
        # Sets no limit where there is none: the cheapest question that a channel has.
        self._ask(lambda wake: self._channel.basic_qos(prefetch_count=0, callback=wake), deadline)

    def depth(self, queue: str, deadline: float) -> int:
        """Return how many messages of a queue wait for a worker; none if there is no such queue."""
        self._sent = Sent()
        try:
            answer = self._ask(
                lambda wake: self._channel.queue_declare(queue, passive=True, callback=wake), deadline
            )
        except BrokerUnavailable:
            closed_by = self._sent.closed_by
            if closed_by is None or closed_by.reply_code != NOT_FOUND:
                raise
            self.open_channel(deadline)
            return 0
        return int(answer.method.message_count)

    def pump(self) -> None:
        """Take notice of what has arrived, without waiting."""
        self._run(lambda: False, time.monotonic())

    def send(self, letters: Iterable[Letter], deadline: float) -> Sent:
        """Send letters and wait until RabbitMQ has settled all of them, or has closed the channel."""
        bodies = []
        sent = self._sent = Sent()
        self._returned.clear()
        for place, letter in enumerate(letters):
            bodies.append(letter.body)
            try:
                self._channel.basic_publish("", letter.queue, letter.body, letter.properties, mandatory=True)
            except Exception as error:
                if not self._channel.is_open:
                    raise
                sent.refused[place] = describe(error)
            else:
                self._tag += 1
                sent.unsettled[self._tag] = place
        self._wait(lambda: not sent.unsettled or sent.closed_by is not None, deadline)
        # A returned message is confirmed as well. Only its body, which is unique, says which one it is.
        settled = range(len(bodies)) if self._returned else ()
        unsettled = set(sent.unsettled.values())
        sent.unroutable = [i for i in settled if bodies[i] in self._returned and i not in unsettled]
        return sent

    def close(self) -> None:
        """Say goodbye and close the connection."""
        if self._connection.is_open:
            self._connection.close()
            self._run(lambda: self._ended is not None, time.monotonic() + CLOSE_TIMEOUT_S)
        self.abort()

    def abort(self) -> None:
        """Cut the connection, whatever state it is in."""
        transport = self._services.transport
        if transport is not None and not self._connection.is_closed:
            transport.cut(BrokerUnavailable("given up"))
            self._run(lambda: self._ended is not None, time.monotonic() + CLOSE_TIMEOUT_S)
        self._loop.close()

    def _connect(self, parameters: pika.connection.Parameters, deadline: float) -> pika.SelectConnection:
        connection = pika.SelectConnection(
            _for_publishing(parameters, deadline - time.monotonic()),
            on_open_callback=self._wake,
            on_open_error_callback=self._on_ended,
            on_close_callback=self._on_ended,
            custom_ioloop=self._services,
        )
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        return connection

    def _ask(self, question: Callable[[Callable[[Any], None]], Any], deadline: float) -> Any:
        answers: list[Any] = []

        def wake(answer: Any) -> None:
            answers.append(answer)
            self._loop.stop()

        question(wake)
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
        """Run the event loop, once at least, until `done` or the deadline, and say which of them it was."""
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
            self._sent.closed_by = reason
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
        unsettled = self._sent.unsettled
        tags = [confirm.delivery_tag]
        if confirm.multiple:
            tags = list(takewhile(lambda tag: tag <= confirm.delivery_tag, unsettled))
        for tag in tags:
            # Unknown are those of a batch that was given up while RabbitMQ blocked publishers.
            place = unsettled.pop(tag, None)
            if place is not None and isinstance(confirm, Basic.Nack):
                self._sent.refused[place] = "RabbitMQ refused it (nack), as it does when a queue is full"
        if not unsettled:
            self._loop.stop()


def _for_publishing(parameters: pika.connection.Parameters, timeout_s: float) -> pika.connection.Parameters:
    parameters = copy.copy(parameters)
    # Nobody would send heartbeats between two calls. Probes find out about a dead connection.
    parameters.heartbeat = 0
    parameters.blocked_connection_timeout = None
    # The relay has a backoff of its own.
    parameters.connection_attempts = 1
    # A little less than there is, so that pika itself gives up and cleans up.
    parameters.socket_timeout = parameters.stack_timeout = max(timeout_s * 0.9, 0.01)
    return parameters
