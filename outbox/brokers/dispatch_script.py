"""Calls of Dramatiq's `dispatch.lua`, several in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq.brokers.redis
from dramatiq.common import current_millis
from redis.exceptions import NoScriptError, ResponseError

from .redis_connection import Command, Connection, encode_commands, read_reply


class DispatchScript:
    """The script through which Dramatiq's `RedisBroker` and its workers change their keys."""

    def __init__(self, broker: dramatiq.brokers.redis.RedisBroker) -> None:
        self._broker = broker
        self._script = broker.scripts["dispatch"]

    def call(self, command: str, queue: str, *args: Any, maintenance: bool = False) -> Command:
        """Return a call of the script: the command that a `do_…` method of the broker would send."""
        broker = self._broker
        return (
            *("EVALSHA", self._script.sha, 1, broker.namespace),
            *(command, current_millis(), queue, broker.broker_id),
            *(broker.heartbeat_timeout, broker.dead_message_ttl, int(maintenance)),
            *(broker._max_unpack_size(), *args),
        )

    def run(self, connection: Connection, calls: Sequence[Command]) -> list[Any]:
        """Send calls and other commands in one round trip, and return their replies.

        Raises:
            ResponseError: the first error among the replies.
            RedisError, OSError: if the connection breaks.
        """
        connection.send_packed_command(encode_commands(connection, calls))
        replies = [read_reply(connection) for _ in calls]
        if any(isinstance(one, NoScriptError) for one in replies):
            replies = self._run_with_source(connection, calls, replies)
        for one in replies:
            if isinstance(one, ResponseError):
                raise one
        return replies

    def _run_with_source(
        self, connection: Connection, calls: Sequence[Command], replies: Sequence[Any]
    ) -> list[Any]:
        """Load the script, which a restart has removed from the server, and repeat the calls that failed."""
        unknown = [place for place, one in enumerate(replies) if isinstance(one, NoScriptError)]
        load = ("SCRIPT", "LOAD", self._script.script)
        connection.send_packed_command(
            encode_commands(connection, [load, *(calls[place] for place in unknown)])
        )
        _loaded, *again = [read_reply(connection) for _ in range(len(unknown) + 1)]
        merged = list(replies)
        for place, one in zip(unknown, again, strict=True):
            merged[place] = one
        return merged
