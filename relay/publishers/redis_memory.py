"""The memory of a Redis server, which has to suffice for messages and for their acknowledgements."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from outbox.errors import BrokerFull

logger = logging.getLogger(__name__)

# A Redis server at `maxmemory` refuses every command that may need memory. A worker's acknowledgement is such
# a command, so the queues would never become shorter.
MAX_SHARE = 0.8

COMMAND = ("INFO", "memory")


class MemoryCheck:
    """The check of one server, which reports an unsuitable eviction policy once."""

    def __init__(self) -> None:
        self._reported_policy = ""

    def check(self, reply: Any) -> None:
        """Check the reply to `COMMAND`, parsed or not; the error of a server that refuses it is no fault.

        Raises:
            BrokerFull: if the server has little memory left, and evicts no keys.
        """
        memory = _fields(reply)
        limit, policy = int(memory.get("maxmemory", 0)), memory.get("maxmemory_policy", "")
        if not limit:
            return
        if policy.startswith("allkeys"):
            self._report(policy)
        elif policy == "noeviction" and _counted(memory) >= limit * MAX_SHARE:
            raise BrokerFull(f"Redis uses {MAX_SHARE:.0%} of its maxmemory or more; the relay waits for less")

    def _report(self, policy: str) -> None:
        if policy == self._reported_policy:
            return
        self._reported_policy = policy
        logger.error(
            "Redis may evict messages: its maxmemory-policy is %r; choose 'noeviction', or another server",
            policy,
        )


def _counted(memory: Mapping[str, str]) -> int:
    """Return the bytes that Redis compares with `maxmemory`."""
    return int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))


def _fields(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):
        return {str(name): str(value) for name, value in reply.items()}
    text = reply.decode() if isinstance(reply, bytes) else reply
    if not isinstance(text, str):
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}
