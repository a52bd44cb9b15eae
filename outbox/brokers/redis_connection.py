"""A connection to Redis like those of a broker's client, but with short timeouts and without retries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dramatiq.brokers.redis import RedisBroker
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

# Prefixes of arguments that tie a connection to its pool, or make it retry.
OMITTED_ARGUMENTS = ("maint_notifications", "maintenance_", "orig_", "oss_cluster_", "retry")

if HIREDIS_AVAILABLE:
    from hiredis import pack_command

Command = tuple[Any, ...]


class Connection(Protocol):
    """The methods of redis-py's connections that this package calls."""

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def pack_commands(self, commands: Iterable[Command]) -> list[bytes]: ...

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def can_read(self, timeout: float = 0) -> bool: ...

    def read_response(self) -> Any: ...


def own_connection(broker: RedisBroker, timeout_s: float) -> Connection:
    """Make a connection like those of the broker's client: also by TLS, a Unix socket or sentinels."""
    pool = broker.client.connection_pool
    arguments = {k: v for k, v in pool.connection_kwargs.items() if not k.startswith(OMITTED_ARGUMENTS)}
    arguments |= {"socket_timeout": timeout_s, "health_check_interval": 0, "retry": Retry(NoBackoff(), 0)}
    if "socket_connect_timeout" in arguments:
        arguments["socket_connect_timeout"] = timeout_s
    connection: Connection = pool.connection_class(**arguments)
    return connection


def encode_commands(connection: Connection, commands: Iterable[Command]) -> list[bytes]:
    """Return the bytes of commands."""
    if not HIREDIS_AVAILABLE:
        return connection.pack_commands(commands)
    # The same bytes as redis-py's, which inspects each argument first.
    return [b"".join(map(pack_command, commands))]


def read_reply(connection: Connection) -> Any:
    """Return the next reply; the error of a single command is a value."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
