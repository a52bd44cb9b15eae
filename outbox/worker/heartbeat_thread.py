"""The heartbeats of a worker process: a thread for each database writes a row every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from uuid import uuid4

from django.db import Error, connections
from dramatiq import Broker, Worker
from dramatiq.common import dq_name

from outbox.conf import get_settings
from outbox.models import ProcessHeartbeat
from outbox.observability.telemetry import worker_in_trouble, worker_recovered
from outbox.own_connection import own_connection
from outbox.process_fields import process_fields

from .probe_thread import ProbeThread

BEAT_INTERVAL_S = 10.0
# How long the end of a worker may wait for the database. A row that stays is forgotten by its age.
STOP_TIMEOUT_S = 2.0

# Bounds the row if a project declares queues by the thousand.
MAX_QUEUES = 1000


class HeartbeatThread(threading.Thread):
    """Writes the heartbeat of one worker to one database, and deletes it when the worker stops.

    The connection is open only during a heartbeat. A heartbeat that fails is reported once, and repeated.

    Args:
        database: the alias of the database.
        broker: the broker whose declared queues the worker serves.
        worker: the Dramatiq worker.
        interval_s: the time between two heartbeats.
    """

    def __init__(
        self, database: str, *, broker: Broker, worker: Worker, interval_s: float = BEAT_INTERVAL_S
    ) -> None:
        super().__init__(name=f"outbox-heartbeat-{database}", daemon=True)
        self.process_id = uuid4()
        self._database = database
        self._broker = broker
        self._worker = worker
        self._interval_s = interval_s
        self._state = "running"
        self._changed = threading.Event()
        self._ends = False
        self._failing_since: float | None = None

    def run(self) -> None:
        """Write heartbeats until `end`, then delete the row."""
        while not self._ends:
            self._try_to_beat()
            self._changed.wait(self._interval_s)
            self._changed.clear()
        # After a failure, another attempt to connect would only delay the end.
        if self._failing_since is None:
            with suppress(Error):
                self._sign_off()

    def note_stopping(self) -> None:
        """Report that the worker takes no more messages."""
        self._state = "stopping"
        self._changed.set()

    def end(self) -> None:
        """Let the thread delete the row and end."""
        self._ends = True
        self._changed.set()

    def _try_to_beat(self) -> None:
        try:
            self._beat()
        except Exception as error:
            # No error may end the thread: a worker without heartbeats would count as dead.
            if self._failing_since is None:
                self._failing_since = monotonic()
                worker_in_trouble.send_robust(
                    HeartbeatThread, database=self._database, state="database away", error=str(error).strip()
                )
            return
        if self._failing_since is not None:
            away_s, self._failing_since = monotonic() - self._failing_since, None
            worker_recovered.send_robust(
                HeartbeatThread, database=self._database, state=self._state, duration_s=away_s
            )

    def _beat(self) -> None:
        try:
            with own_connection(self._database):
                ProcessHeartbeat.objects.using(self._database).beat(
                    self.process_id,
                    state=self._state,
                    kind=ProcessHeartbeat.Kind.WORKER,
                    queues=",".join(served_queues(self._broker, self._worker)),
                    threads=self._worker.worker_threads,
                    **process_fields(),
                )
        finally:
            connections.close_all()

    def _sign_off(self) -> None:
        try:
            with own_connection(self._database):
                ProcessHeartbeat.objects.using(self._database).filter(pk=self.process_id).delete()
        finally:
            connections.close_all()


WorkerThread = HeartbeatThread | ProbeThread


def start_heartbeats(broker: Broker, worker: Worker) -> list[WorkerThread]:
    """Start the heartbeats of a worker: a thread for each served database, and one for the probe file."""
    settings = get_settings()
    threads: list[WorkerThread] = [
        HeartbeatThread(alias, broker=broker, worker=worker) for alias in settings.databases
    ]
    if settings.worker_probe_file:
        threads.append(ProbeThread(settings.worker_probe_file, worker=worker))
    for thread in threads:
        thread.start()
    return threads


def served_queues(broker: Broker, worker: Worker) -> list[str]:
    """Return the queues that a worker serves now; handlers may declare more after its start."""
    only, declared = worker.consumer_whitelist, broker.get_declared_queues()
    # Some brokers list the queues of delayed messages too.
    queues = declared - set(map(dq_name, declared))
    return sorted(queues & only if only else queues)[:MAX_QUEUES]


def end_heartbeats(threads: Sequence[WorkerThread], *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End the threads, which delete their rows unless a database does not answer in time."""
    for thread in threads:
        thread.end()
    deadline = monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
