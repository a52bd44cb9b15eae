"""The outbox's own queues in RabbitMQ: the marker, and the announcements of workers."""

from __future__ import annotations

import logging

from outbox.brokers.unwritten import unwritten_queue, unwritten_queue_arguments

from .amqp import AmqpConnection
from .amqp_types import QueueRefused
from .base import Marker

logger = logging.getLogger(__name__)

# RabbitMQ deletes the marker of a project whose relays have not asked for it for four weeks.
MARKER_EXPIRES_MS = 28 * 24 * 3600 * 1000


def make_marker(connection: AmqpConnection, marker: Marker, deadline: float) -> None:
    """Declare the queue of a marker.

    Raises:
        QueueRefused: if RabbitMQ does not allow it.
    """
    connection.declare(_marker_queue(marker), deadline, arguments={"x-expires": MARKER_EXPIRES_MS})


def lacks_marker(connection: AmqpConnection, marker: Marker, deadline: float) -> bool:
    """Return whether RabbitMQ lacks the queue of a marker."""
    return connection.lacks(_marker_queue(marker), deadline)


def has_announcement(connection: AmqpConnection, queue: str, deadline: float) -> bool:
    """Return whether a worker of a queue has announced outcomes within the last 30 seconds."""
    # Declared, since RabbitMQ closes the channel for a passive declaration of a queue that does not exist.
    arguments = unwritten_queue_arguments()
    try:
        return connection.declare(unwritten_queue(queue), deadline, arguments=arguments) > 0
    except QueueRefused as refused:
        logger.warning("workers of queue %r cannot announce outcomes: %s", queue, refused)
        return False


def _marker_queue(marker: Marker) -> str:
    return f"outbox.marker.{marker.name}.{marker.generation}"
