"""Check whether a server answers, and wait until it does."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

POLL_INTERVAL_S = 0.02


class ServiceError(Exception):
    """A server did not start, or did not stop."""


def wait_until(predicate: Callable[[], bool], *, timeout_s: float, awaited: str) -> None:
    """Poll `predicate` until it is true; raise `ServiceError` if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise ServiceError(f"waited {timeout_s:g} s for {awaited}")
        time.sleep(POLL_INTERVAL_S)


def ask(host: str, port: int, question: bytes, *, wanted: int) -> bytes:
    """Send `question` and return at most the first `wanted` bytes of the answer."""
    answer = b""
    with suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(question)
        while len(answer) < wanted and (part := connection.recv(wanted - len(answer))):
            answer += part
    return answer
