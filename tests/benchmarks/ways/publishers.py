"""This package with many publisher processes that commit as fast as they can."""

from __future__ import annotations

from . import outbox  # sets Django up, which the models need

# isort: split
import multiprocessing
import time
from multiprocessing.connection import Connection

from django.conf import settings
from django.db import connections, transaction

import outbox as package
from outbox.models import ProcessHeartbeat
from tests.benchmarks import ending, site
from tests.benchmarks.processes import children
from tests.benchmarks.protocol import Answer, Clock, serve

# Forks, since a hundred fresh interpreters would take long to start.
forking = multiprocessing.get_context("fork")


class Publishers:
    """Processes that publish on request; they share the cores with a relay."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []

    def commit(self, seconds: float, *, publishers: int, notify: bool) -> Answer:
        """Publish with many processes at the same time; count their commits."""
        while len(self._pipes) < publishers:
            self._pipes.append(_started())
        for pipe in self._pipes[:publishers]:
            pipe.send((seconds, notify))
        found = [pipe.recv() for pipe in self._pipes[:publishers]]
        # The next turn finds an idle relay, as this one did.
        ending.wait_until(outbox.is_all_sent)
        outbox.settle()
        return {
            "events": sum(events for events, _cpu_s in found),
            "wall_s": seconds,
            "cpu_s": sum(cpu_s for _events, cpu_s in found),
        }


def _started() -> Connection:
    # A child must not share a connection to the database.
    connections.close_all()
    ours, theirs = forking.Pipe()
    forking.Process(target=_publisher, args=(theirs,), daemon=True).start()
    # Otherwise this process would not notice that a publisher has failed.
    theirs.close()
    try:
        ours.recv()
    except EOFError:
        raise RuntimeError("a publisher cannot publish; does PostgreSQL allow enough connections?") from None
    return ours


def _publisher(pipe: Connection) -> None:
    # The first publish connects, with empty caches.
    _publish_one()
    pipe.send("ready")
    while True:
        try:
            seconds, notify = pipe.recv()
        except EOFError:
            return
        settings.OUTBOX = {"LISTEN": notify}
        pipe.send(_publish(seconds))


def _publish(seconds: float) -> tuple[int, float]:
    clock, events = Clock(), 0
    until = time.monotonic() + seconds
    with clock.running():
        while time.monotonic() < until:
            _publish_one()
            events += 1
    return events, clock.cpu_s


def _publish_one() -> None:
    with transaction.atomic():
        package.publish("bench.single", site.PAYLOAD)


def _relay_is_up() -> bool:
    return ProcessHeartbeat.objects.relays().exists()


if __name__ == "__main__":
    site.migrate()
    outbox.clear()
    with children(outbox.RELAY, env={}):
        ending.wait_until(_relay_is_up, ending.START_TIMEOUT_S)
        serve({"commit": Publishers().commit}, packages=outbox.PACKAGES)
