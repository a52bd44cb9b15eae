"""Check a broker before the demo, and empty it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import dramatiq

from .errors import DemoError


def reachable(url: str) -> None:
    """Check that the broker answers.

    Raises:
        DemoError: if the broker does not answer.
    """
    try:
        if _is_rabbitmq(url):
            _rabbitmq(url).close()
        else:
            _redis(url).ping()
    except Exception as error:  # each client has its own errors
        reason = str(error) or type(error).__name__
        raise DemoError(
            f"No broker answers at {_without_password(url)} ({reason}); check DRAMATIQ_BROKER_URL."
        ) from error


@contextmanager
def emptied(url: str, *, namespace: str, prefix: str) -> Iterator[None]:
    """Delete the demo's keys or queues from the broker afterwards."""
    try:
        yield
    finally:
        if _is_rabbitmq(url):
            _delete_queues(url, prefix)
        else:
            _delete_keys(url, namespace)


def _delete_keys(url: str, namespace: str) -> None:
    with _redis(url) as client:
        for key in client.scan_iter(f"{namespace}:*", count=1000):
            client.unlink(key)


def _delete_queues(url: str, prefix: str) -> None:
    ours = [name for name in dramatiq.get_broker().get_declared_queues() if name.startswith(prefix)]
    with _rabbitmq(url) as connection, connection.channel() as channel:
        for name in ours:
            # Dramatiq keeps delayed messages in <name>.DQ and dead ones in <name>.XQ.
            for queue in (name, f"{name}.DQ", f"{name}.XQ"):
                channel.queue_delete(queue)


def _redis(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def _rabbitmq(url: str) -> Any:
    import pika

    return pika.BlockingConnection(pika.URLParameters(url))


def _is_rabbitmq(url: str) -> bool:
    return urlsplit(url).scheme.startswith("amqp")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
