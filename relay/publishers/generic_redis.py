"""Publish one message at a time to a Redis broker that enqueues in its own way."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker
from redis.exceptions import ResponseError

from outbox.errors import BrokerUnavailable

from .base import describe
from .generic import GenericPublisher
from .redis_memory import MemoryCheck


class GenericRedisPublisher(GenericPublisher):
    """Call `broker.enqueue` for each message, while Redis has memory for acknowledgements."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._memory = MemoryCheck()

    def probe(self) -> None:
        """Ask for the memory of the server, also to detect a lost connection.

        Raises:
            BrokerFull: if the server has little memory left.
            BrokerUnavailable: if it does not answer.
        """
        client: Any = self._broker.client  # type: ignore[attr-defined]
        try:
            memory = client.info("memory")
        except ResponseError:
            return  # an access list forbids it, but the server answers
        except Exception as error:  # of any client; there is no message that could be the cause
            raise BrokerUnavailable(describe(error)) from error
        self._memory.check(memory)
