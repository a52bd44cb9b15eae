"""The interface of publishers, and the encoding of batches that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, Protocol

from dramatiq import Broker, Message, Middleware

from outbox.errors import BrokerUnavailable
from relay.messages.dispatch_ids import OverdueDelivery
from relay.messages.single import OutgoingMessage

# How long a probe waits for the broker.
PROBE_TIMEOUT_S = 5.0

# A probe sends nothing to a broker that has answered within this time.
PROBE_INTERVAL_S = 1.0

# The width of the column of broker names.
MAX_NAME_LENGTH = 255


class Refusal(NamedTuple):
    """A message of a batch that was not sent; other messages may have been.

    Args:
        is_proved: whether the message is the cause. The cause may otherwise be an outage or a full queue, so
            that the failure costs no attempt.
    """

    outgoing: OutgoingMessage
    error: str
    is_proved: bool = True


class PartlySent(BrokerUnavailable):
    """Raised when a publisher ends a batch after it has sent some messages, or tried them without success.

    Args:
        unsent: the messages that were not tried.
        refusals: messages that were not sent.
    """

    def __init__(
        self, message: str, unsent: Sequence[OutgoingMessage], refusals: Sequence[Refusal] = ()
    ) -> None:
        super().__init__(message)
        self.unsent = unsent
        self.refusals = refusals


class Marker(NamedTuple):
    """A marker that a relay makes in a broker, and that the broker loses only with its messages."""

    name: str
    generation: int


@dataclass
class MarkerCheck:
    """The check of a broker's marker, which a publisher combines with its other requests.

    Attributes:
        expected: the marker that the broker should have; None if no check is wanted.
        missing: whether the broker lacked it at the last check.
    """

    expected: Marker | None = None
    missing: bool = False

    def expect(self, marker: Marker) -> None:
        """Check for another marker from now on."""
        self.expected, self.missing = marker, False


class Publisher(Protocol):
    """Sends batches to one broker, from one thread.

    Attributes:
        broker_name: the address of the broker, without a password; empty if no marker can be made there.
        finds_messages: whether the broker can be asked for a single message.
    """

    broker_name: str
    finds_messages: bool

    @property
    def marker(self) -> MarkerCheck:
        """The check of the broker's marker."""

    def probe(self) -> None:
        """Check, before a claim, that the broker can be reached.

        Raises:
            BrokerUnavailable: if it cannot.
        """

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> list[Refusal]:
        """Send a batch; return the messages that were not sent.

        Raises:
            PartlySent: if the batch ended early, and the unsent messages are known.
            BrokerUnavailable: if the batch was not sent, or an unknown part of it was.
        """

    def still_queued(
        self, overdue: Sequence[OverdueDelivery], *, timeout_s: float, after_loss: bool = False
    ) -> set[int]:
        """Return the ids of the deliveries whose message the broker or a worker has, or may well have.

        Args:
            after_loss: whether the broker has lost its messages since the dispatch of these deliveries.

        Raises:
            BrokerUnavailable: if the broker does not answer.
        """

    def check_marker(self) -> bool:
        """Return whether the broker lacks its marker; ask it, unless it has just answered.

        Raises:
            BrokerUnavailable: if the broker does not answer.
        """

    def make_marker(self, marker: Marker) -> None:
        """Make a marker in the broker, and check for it from now on.

        Raises:
            BrokerUnavailable: if the broker does not answer, or refuses.
        """

    def workers_have_outcomes(self) -> bool:
        """Return whether a worker has announced outcomes that it cannot write, or long runs.

        Raises:
            BrokerUnavailable: if the broker does not answer.
        """

    def close(self) -> None:
        """Close the connection."""


class EncodedMessage(NamedTuple):
    """A message ready to be sent."""

    outgoing: OutgoingMessage
    body: bytes
    options: Mapping[str, Any]  # the publisher's own, in addition to the message's
    message: Message[Any] | None  # built only if a middleware has enqueue hooks

    @property
    def priority(self) -> int | None:
        """RabbitMQ's priority, which a hook may have changed."""
        if self.message is not None:
            return self.message.options.get("broker_priority")
        return self.outgoing.priority


def encode_batch(
    broker: Broker,
    outgoing: Sequence[OutgoingMessage],
    options: Iterable[Mapping[str, Any]] = repeat({}),
) -> tuple[list[EncodedMessage], list[Refusal]]:
    """Run the `before_enqueue` hooks and encode a batch.

    Args:
        broker: the broker whose middleware has the hooks.
        outgoing: the messages.
        options: for each message in turn, the options to add.
    """
    encoded_messages: list[EncodedMessage] = []
    refusals: list[Refusal] = []
    hooked = has_enqueue_hooks(broker)
    for item, extra in zip(outgoing, options, strict=False):
        try:
            encoded_messages.append(
                _encode_with_hooks(broker, item, extra)
                if hooked
                else EncodedMessage(item, item.body(**extra), extra, None)
            )
        except Exception as error:  # one malformed message or failing hook does not stop the others
            refusals.append(Refusal(item, describe(error)))
    return encoded_messages, refusals


def _encode_with_hooks(broker: Broker, item: OutgoingMessage, options: Mapping[str, Any]) -> EncodedMessage:
    message = item.message().copy(options=options)
    broker.emit_before("enqueue", message, None)
    # After the hooks, which may add options.
    return EncodedMessage(item, message.encode(), options, message)


def emit_enqueued(broker: Broker, encoded_messages: Iterable[EncodedMessage]) -> None:
    """Run the `after_enqueue` hooks of messages that were sent."""
    for encoded in encoded_messages:
        if encoded.message is not None:
            broker.emit_after("enqueue", encoded.message, None)


def has_enqueue_hooks(broker: Broker) -> bool:
    """Return whether a middleware has enqueue hooks that the relay must run."""
    return any(
        _overrides(middleware, hook)
        for middleware in broker.middleware
        for hook in ("before_enqueue", "after_enqueue")
    )


def _overrides(middleware: Middleware, hook: str) -> bool:
    method = getattr(middleware, hook)
    return getattr(method, "__func__", method) is not getattr(Middleware, hook)


def describe(error: BaseException) -> str:
    """Return an error as one line for a delivery's row."""
    return f"{type(error).__name__}: {error}" if str(error) else repr(error)
