"""Pipelined publishes with RabbitMQ confirms, written by hand with pika's asynchronous connection."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import dramatiq
import pika
from pika.adapters.select_connection import IOLoop


class Pipelined:
    """A channel in confirm mode, which sends a batch and then waits for all confirms."""

    def __init__(self, url: str, queue: str) -> None:
        broker = dramatiq.get_broker()
        broker._ensure_queue(queue)
        self._queue = queue
        self._properties = pika.BasicProperties(delivery_mode=2)
        self._tag = 0
        self._unconfirmed: dict[int, None] = {}  # in the order of sending
        self._loop = IOLoop()
        parameters = pika.URLParameters(url)
        connection = pika.SelectConnection(parameters, self._on_open, self._on_end, custom_ioloop=self._loop)
        connection.add_on_close_callback(self._on_end)
        self._loop.start()

    def send(self, bodies: Iterable[bytes]) -> None:
        """Send a batch and wait until RabbitMQ has confirmed it."""
        for body in bodies:
            self._channel.basic_publish("", self._queue, body, self._properties, mandatory=True)
            self._tag += 1
            self._unconfirmed[self._tag] = None
        while self._unconfirmed:
            self._loop.start()

    def _on_open(self, connection: pika.SelectConnection) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirmed, callback=lambda _frame: self._loop.stop())

    def _on_confirmed(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise RuntimeError("RabbitMQ refused a message")
        tag = frame.method.delivery_tag
        upto = takewhile(lambda other: other <= tag, self._unconfirmed) if frame.method.multiple else (tag,)
        for confirmed in list(upto):
            del self._unconfirmed[confirmed]
        if not self._unconfirmed:
            self._loop.stop()

    def _on_end(self, _connection: Any, error: BaseException) -> None:
        raise RuntimeError("RabbitMQ ended the connection") from error
