"""The parameters of a connection to RabbitMQ, its messages, and the results."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pika
from pika.exceptions import ChannelClosedByBroker

from outbox.errors import BrokerUnavailable


class QueueRefused(BrokerUnavailable):
    """Raised when RabbitMQ closes the channel because of a queue.

    Args:
        code: the reply code of RabbitMQ.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class AmqpMessage(NamedTuple):
    """A message with its routing key and properties."""

    queue: str
    body: bytes
    properties: pika.BasicProperties


class SendResult:
    """The result of sending a batch; messages are named by their index in the batch."""

    def __init__(self) -> None:
        self.unconfirmed: dict[int, int] = {}  # delivery tag → index, in the order of sending
        self.refused: dict[int, str] = {}
        self.nacked: list[int] = []
        self.unroutable: list[int] = []
        self.closed_by: ChannelClosedByBroker | None = None


def for_publishing(parameters: pika.connection.Parameters, timeout_s: float) -> pika.connection.Parameters:
    """Return the parameters of a broker for a connection that a relay opens and watches.

    Args:
        timeout_s: the time until it is open.
    """
    parameters = copy.copy(parameters)
    # Between two calls nothing would send heartbeats. Probes detect a dead connection.
    parameters.heartbeat = 0
    parameters.blocked_connection_timeout = None
    # The relay has its own backoff.
    parameters.connection_attempts = 1
    # A little less than the remaining time, so that pika times out first and cleans up.
    parameters.socket_timeout = parameters.stack_timeout = max(timeout_s * 0.9, 0.01)
    return parameters
