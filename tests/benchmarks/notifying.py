"""What NOTIFY costs many publishers, each a process of its own that commits as fast as it can."""

from __future__ import annotations

import os
import time
from statistics import median

from django.conf import settings
from django.db import connections, transaction

import outbox
from tests.benchmarks.retention import execute, finish, relaying

PAYLOAD = {"order_id": 7, "note": "x" * 400}
# Until all publishers have connected.
HEAD_START_S = 3.0


def main(*, publishers: int, seconds: float, rounds: int) -> None:
    """Print commits a second, with NOTIFY on and off, while a relay listens; the handler is declared."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _round in range(rounds):
        for notify in rates:
            execute("TRUNCATE outbox_event, outbox_delivery")
            with relaying():
                rates[notify].append(publish(publishers, seconds, notify=notify) / seconds)
            finish()
    on, off = median(rates[True]), median(rates[False])
    print(f"\n{publishers} publishers, commits/s: {on:,.0f} with NOTIFY, {off:,.0f} without, {on / off:.3f}")


def publish(publishers: int, seconds: float, *, notify: bool) -> int:
    """Let processes publish, and return how many transactions they have committed."""
    begin_at = time.monotonic() + HEAD_START_S
    pipes = [_fork(begin_at, seconds, notify=notify) for _ in range(publishers)]
    total = 0
    for pid, reader in pipes:
        with os.fdopen(reader) as counted:
            total += int(counted.read())
        os.waitpid(pid, 0)
    return total


def _fork(begin_at: float, seconds: float, *, notify: bool) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    # The child must not touch the connections that it shares with its parent, nor clean up after it.
    try:
        os.write(writer, str(_commit(begin_at, seconds, notify=notify)).encode())
    finally:
        os._exit(0)


def _commit(begin_at: float, seconds: float, *, notify: bool) -> int:
    settings.OUTBOX = {"LISTEN": notify}
    for alias in connections:
        connections[alias].connection = None
    connections["default"].ensure_connection()
    time.sleep(max(0.0, begin_at - time.monotonic()))
    commits = 0
    while time.monotonic() < begin_at + seconds:
        with transaction.atomic():
            outbox.publish("bench.flat", PAYLOAD)
        commits += 1
    return commits
