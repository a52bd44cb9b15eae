"""Publish one message at a time, through whatever broker there is."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence

from dramatiq import Broker
from dramatiq.errors import ConnectionClosed, ConnectionFailed

from outbox.errors import BrokerUnavailable
from relay.copies import Overdue
from relay.messages import Outgoing
from relay.publishers.base import PartlySent, Refusal, describe

# What means that the broker is away, by client library: none of these derive from OSError.
CONNECTION_ERRORS = {
    "redis.exceptions": ("ConnectionError", "TimeoutError", "ReadOnlyError"),
    "pika.exceptions": ("AMQPConnectionError",),
}


class GenericPublisher:
    """Call `broker.enqueue` for each message.

    A single call is bounded by nothing but the broker's own timeouts; the deadline is kept between calls.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._connection_errors: tuple[type[Exception], ...] = (
            ConnectionClosed,
            ConnectionFailed,
            OSError,
            *_client_errors(),
        )

    def probe(self) -> None:
        """Ping the broker's client, if it has one that can be pinged."""
        ping = getattr(getattr(self._broker, "client", None), "ping", None)
        if ping is None:
            return
        try:
            ping()
        except self._connection_errors as error:
            raise BrokerUnavailable(describe(error)) from error

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> list[Refusal]:
        """Enqueue message after message, and return those that could not be."""
        deadline = time.monotonic() + timeout_s
        refusals: list[Refusal] = []
        for tried, item in enumerate(outgoing):
            if time.monotonic() >= deadline:
                sent = tried - len(refusals)
                problem = f"the broker took {sent} of {len(outgoing)} messages in {timeout_s:g} s"
                if not tried:
                    raise BrokerUnavailable(problem)
                # Sent again from the first one, a slow broker would get the same messages for ever.
                raise PartlySent(problem, outgoing[tried:], refusals)
            try:
                self._broker.enqueue(item.message())
            except self._connection_errors as error:
                raise BrokerUnavailable(describe(error)) from error
            except Exception as error:  # whatever is wrong with one message, the others go
                refusals.append(Refusal(item, describe(error)))
        return refusals

    def holds(self, overdue: Sequence[Overdue], *, timeout_s: float) -> set[int]:
        """Return no delivery: brokers in general cannot be asked."""
        return set()

    def close(self) -> None:
        """Leave the broker's connections to the broker."""


def _client_errors() -> Iterator[type[Exception]]:
    for module_name, names in CONNECTION_ERRORS.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        yield from (getattr(module, name) for name in names)
