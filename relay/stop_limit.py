"""The end of a process that a server keeps from stopping."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

from .stopping import Stop, start_without_signals

logger = logging.getLogger(__name__)

# After the deadline of the batch in hand: the time to commit it, to write counts and to sign off.
STOP_MARGIN_S = 10.0

FOREVER_S = 1e6


@contextmanager
def ends_within(limit_s: float, stop: Stop) -> Generator[None]:
    """End the process this long after a stop was requested, if the block has not ended by then.

    A database that accepts statements and never answers blocks the relay in a call without a timeout. The
    database rolls an open claim back, so its deliveries stay pending.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        thread = threading.Thread(
            target=_watch, args=(stop, reader, limit_s), name="relay-stop-limit", daemon=True
        )
        start_without_signals(thread)
        try:
            yield
        finally:
            writer.send(b"\0")
            thread.join()


def _watch(stop: Stop, ended: socket.socket, limit_s: float) -> None:
    while not stop.requested:
        if stop.wait(FOREVER_S, also=(ended.fileno(),)):
            return
    if not select.select([ended], (), (), limit_s)[0]:
        logger.warning("the relay ends now: a server has not answered within %.0f s after the stop", limit_s)
        os._exit(0)
