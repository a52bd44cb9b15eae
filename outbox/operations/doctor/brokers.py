"""The examination of a broker: the memory and the persistence of Redis, and Dramatiq's middleware.

AMQP alone tells nothing about the settings of a RabbitMQ server, so it has no findings of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dramatiq import Broker
from dramatiq.middleware import Retries, TimeLimit

from outbox.conf import get_settings

from .finding import Finding

# Above this share of its memory a relay dispatches nothing.
MAX_SHARE = 0.8
# The options and the frame of a message, beside its payload.
ENVELOPE_BYTES = 16 * 1024
# A server may accept a connection and then never answer.
TIMEOUT_S = 5.0


def examine(broker: Broker) -> Iterator[Finding]:
    """Yield the findings about a broker and its middleware."""
    kinds = tuple(type(one) for one in broker.middleware)
    if not any(issubclass(kind, Retries) for kind in kinds):
        yield Finding.of("no-retries", "the broker has no middleware Retries, so the first error is final")
    if not any(issubclass(kind, TimeLimit) for kind in kinds):
        yield Finding.of("no-time-limit", "the broker has no middleware TimeLimit")
    if hasattr(getattr(broker, "client", None), "connection_pool"):
        yield from _redis(broker)


def redis_error() -> type[Exception]:
    """Return the base class of the errors of redis-py; without the package one that is never raised."""
    try:
        from redis.exceptions import RedisError
    except ModuleNotFoundError:
        return ConnectionError
    error: type[Exception] = RedisError
    return error


def _redis(broker: Any) -> Iterator[Finding]:
    memory, persistence, save, largest = _ask_redis(broker)
    limit, used = int(memory.get("maxmemory", 0)), int(memory.get("used_memory", 0))
    policy = memory.get("maxmemory_policy", "noeviction")
    if limit and policy.startswith("allkeys"):
        yield Finding.of(
            "redis-evicts", f"maxmemory-policy is {policy!r}, so Redis deletes messages when it is full"
        )
    elif limit and used >= limit * MAX_SHARE:
        yield Finding.of("redis-full", f"Redis uses {used:,} of {limit:,} bytes")
    if persistence.get("aof_enabled") == "0" and save == "":
        yield Finding.of("redis-without-persistence", "Redis keeps no data over a restart")
    wanted = get_settings().max_payload_bytes + ENVELOPE_BYTES
    if largest is not None and int(largest) < wanted:
        yield Finding.of(
            "redis-small-messages",
            f"proto-max-bulk-len is {int(largest):,} bytes, and a message may have {wanted:,}",
        )


def _ask_redis(broker: Any) -> tuple[dict[str, str], dict[str, str], str | None, str | None]:
    """Return memory, persistence, `save` and `proto-max-bulk-len`; None for a setting that is not told.

    A hosted Redis may refuse CONFIG.
    """
    from outbox.brokers.redis_connection import encode_commands, own_connection, read_reply

    commands = [
        *(("INFO", section) for section in ("memory", "persistence")),
        *(("CONFIG", "GET", name) for name in ("save", "proto-max-bulk-len")),
    ]
    connection = own_connection(broker, TIMEOUT_S)
    try:
        connection.connect()
        connection.send_packed_command(encode_commands(connection, commands))
        memory, persistence, *settings = [read_reply(connection) for _command in commands]
    finally:
        connection.disconnect()
    save, largest = map(_setting, settings)
    return _fields(memory), _fields(persistence), save, largest


def _setting(reply: Any) -> str | None:
    # A map with one entry since RESP 3, a name and a value before.
    values = list(reply.values()) if isinstance(reply, dict) else reply[1:] if isinstance(reply, list) else []
    return _text(values[0]) if values else None


def _fields(reply: Any) -> dict[str, str]:
    lines = _text(reply).splitlines() if isinstance(reply, bytes | str) else ()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
