"""What the publishers of all brokers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Protocol

from dramatiq import Broker, Message, Middleware

from outbox.errors import BrokerUnavailable
from relay.copies import Overdue
from relay.messages import Outgoing

# How long a probe waits for the broker.
PROBE_TIMEOUT_S = 5.0

# A broker that answered so recently is not asked again.
PROBE_INTERVAL_S = 1.0

# With more messages than this a queue is so deep that a message may well be in it still, long after it went.
DEEP_QUEUE = 1000


class Refusal(NamedTuple):
    """One message that cannot be sent, though the others of its batch were."""

    outgoing: Outgoing
    error: str


class PartlySent(BrokerUnavailable):
    """Raised when the time for a batch ran out after some of its messages had gone or been refused.

    Args:
        unsent: those whose turn did not come.
        refusals: those that cannot be sent, of the others.
    """

    def __init__(self, message: str, unsent: Sequence[Outgoing], refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.unsent = unsent
        self.refusals = refusals


class Publisher(Protocol):
    """The way to one broker, for one thread."""

    def probe(self) -> None:
        """Make sure, before anything is claimed, that the broker can be reached.

        Raises:
            BrokerUnavailable: if it cannot.
        """

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> list[Refusal]:
        """Send a batch and return those of its messages that cannot be sent.

        Raises:
            PartlySent: if the time ran out, and which of the messages have not gone is known.
            BrokerUnavailable: if the batch did not go, or nobody knows; parts of it may have.
        """

    def holds(self, overdue: Sequence[Overdue], *, timeout_s: float) -> set[int]:
        """Return the ids of the deliveries whose message is with the broker, or may well be.

        Raises:
            BrokerUnavailable: if it cannot be asked.
        """

    def close(self) -> None:
        """Let go of the connection."""


class Parcel(NamedTuple):
    """A message ready to be sent."""

    outgoing: Outgoing
    body: bytes
    options: Mapping[str, Any]  # what the publisher added to those of the message
    message: Message[Any] | None  # built only for those who hook into enqueueing

    @property
    def priority(self) -> int | None:
        """RabbitMQ's priority, which a hook may have changed."""
        if self.message is not None:
            return self.message.options.get("broker_priority")
        return self.outgoing.priority


def pack(
    broker: Broker,
    outgoing: Sequence[Outgoing],
    options: Iterable[Mapping[str, Any]] = repeat({}),
) -> tuple[list[Parcel], list[Refusal]]:
    """Encode a batch, `options` added to each message in turn, and run the hooks before enqueueing."""
    parcels: list[Parcel] = []
    refusals: list[Refusal] = []
    hooked = has_enqueue_hooks(broker)
    for item, extra in zip(outgoing, options, strict=False):
        try:
            parcels.append(
                _hooked(broker, item, extra) if hooked else Parcel(item, item.body(**extra), extra, None)
            )
        except Exception as error:  # whatever one message holds or one hook raises, the others go
            refusals.append(Refusal(item, describe(error)))
    return parcels, refusals


def _hooked(broker: Broker, item: Outgoing, options: Mapping[str, Any]) -> Parcel:
    message = item.message().copy(options=options)
    broker.emit_before("enqueue", message, None)
    # Only now, as hooks may add to the message's options.
    return Parcel(item, message.encode(), options, message)


def unpack(broker: Broker, parcels: Iterable[Parcel]) -> None:
    """Run the hooks after enqueueing, for messages that were sent."""
    for parcel in parcels:
        if parcel.message is not None:
            broker.emit_after("enqueue", parcel.message, None)


def has_enqueue_hooks(broker: Broker) -> bool:
    """Say whether any middleware wants to see messages as they are enqueued."""
    return any(
        _overrides(middleware, hook)
        for middleware in broker.middleware
        if not getattr(middleware, "ignores_relay", False)
        for hook in ("before_enqueue", "after_enqueue")
    )


def _overrides(middleware: Middleware, hook: str) -> bool:
    method = getattr(middleware, hook)
    return getattr(method, "__func__", method) is not getattr(Middleware, hook)


def describe(error: BaseException) -> str:
    """Return an error as one line for a delivery's row."""
    return f"{type(error).__name__}: {error}" if str(error) else repr(error)
