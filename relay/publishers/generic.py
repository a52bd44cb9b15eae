"""Publish one message at a time, through any Dramatiq broker."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence

from dramatiq import Broker
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.middleware import MiddlewareError

from outbox.errors import BrokerUnavailable
from relay.messages.dispatch_ids import OverdueDelivery
from relay.messages.single import OutgoingMessage

from .base import Marker, MarkerCheck, PartlySent, Refusal, describe
from .refusal_proof import RefusalProof

# The errors of an unreachable broker, by client library; none derives from OSError.
CONNECTION_ERRORS = {
    "redis.exceptions": ("ConnectionError", "TimeoutError", "ReadOnlyError"),
    "pika.exceptions": ("AMQPConnectionError",),
}


# So many failures in a row end a batch: in an outage each one may take as long as a timeout of the broker.
# The next batch begins with the untried messages.
MAX_UNPROVED_IN_A_ROW = 10


class GenericPublisher:
    """Call `broker.enqueue` for each message.

    Only the broker's own timeouts bound a call; the publisher checks the deadline between calls.
    """

    broker_name = ""
    finds_messages = False

    def __init__(self, broker: Broker) -> None:
        self.marker = MarkerCheck()
        self._broker = broker
        self._proof = RefusalProof()
        self._connection_errors: tuple[type[Exception], ...] = (
            ConnectionClosed,
            ConnectionFailed,
            OSError,
            *_client_errors(),
        )

    def probe(self) -> None:
        """Ping the broker's client, if it has a `ping`."""
        ping = getattr(getattr(self._broker, "client", None), "ping", None)
        if ping is None:
            return
        try:
            ping()
        except Exception as error:  # of any client library; there is no message that could be the cause
            raise BrokerUnavailable(describe(error)) from error

    def publish(self, outgoing: Sequence[OutgoingMessage], *, timeout_s: float) -> list[Refusal]:
        """Enqueue message after message; return the messages that were not enqueued."""
        deadline = time.monotonic() + timeout_s
        refusals: list[Refusal] = []
        unproved_in_a_row = 0
        for tried, item in enumerate(outgoing):
            problem = ""
            if time.monotonic() >= deadline:
                sent = tried - len(refusals)
                problem = f"the broker took {sent} of {len(outgoing)} messages in {timeout_s:g} s"
            elif unproved_in_a_row == MAX_UNPROVED_IN_A_ROW:
                problem = f"the broker took none of {unproved_in_a_row} messages: {refusals[-1].error}"
            if problem:
                raise _ended_early(problem, outgoing[tried:], refusals, started=tried > 0)
            try:
                refusal = self._enqueue(item)
            except self._connection_errors as error:
                raise _ended_early(describe(error), outgoing[tried:], refusals, started=tried > 0) from error
            refusals += [refusal] if refusal else []
            unproved_in_a_row = unproved_in_a_row + 1 if refusal and not refusal.is_proved else 0
        return refusals

    def _enqueue(self, item: OutgoingMessage) -> Refusal | None:
        """Enqueue a message; return its refusal, if any."""
        try:
            message = item.message()
        except Exception as error:  # a malformed row, not a fault of the broker
            return Refusal(item, describe(error))
        try:
            self._broker.enqueue(message)
        except self._connection_errors:
            raise
        except MiddlewareError as error:
            return Refusal(item, describe(error))
        except Exception as error:  # of any client library
            return self._proof.judge(item, describe(error))
        self._proof.note_taken([item])
        return None

    def still_queued(
        self, overdue: Sequence[OverdueDelivery], *, timeout_s: float, after_loss: bool = False
    ) -> set[int]:
        """Return no delivery: Dramatiq has no interface to look into a queue."""
        return set()

    def check_marker(self) -> bool:
        """Return False: Dramatiq has no interface to make a marker."""
        return False

    def make_marker(self, marker: Marker) -> None:
        """Do nothing: Dramatiq has no interface to make a marker."""

    def workers_have_outcomes(self) -> bool:
        """Return False: workers announce nothing in an unknown broker."""
        return False

    def close(self) -> None:
        """Do nothing: the connections belong to the broker."""


def _ended_early(
    problem: str, unsent: Sequence[OutgoingMessage], refusals: Sequence[Refusal], *, started: bool
) -> BrokerUnavailable:
    # A batch that starts again from its first message would never get through a slow broker.
    return PartlySent(problem, unsent, refusals) if started else BrokerUnavailable(problem)


def _client_errors() -> Iterator[type[Exception]]:
    for module_name, names in CONNECTION_ERRORS.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        yield from (getattr(module, name) for name in names)
