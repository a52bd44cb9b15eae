"""The Dramatiq worker in a relay's process, which runs the messages of an `EmbeddedBroker`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from django.db import Error, connections
from dramatiq import Worker

from outbox.brokers.embedded import EmbeddedBroker
from outbox.confirmations import confirmations
from outbox.models import Delivery
from outbox.own_connection import own_connection

from .deadlines import within
from .owner_lock import OwnerLock

logger = logging.getLogger(__name__)

# How often the threads of an idle worker look whether it stops.
IDLE_MS = 500
# How long a stop waits for the handlers that run. The command line of Dramatiq has the same default.
STOP_TIMEOUT_MS = 600_000
# How long a stop waits for the database to take the deliveries back.
RETURN_TIMEOUT_S = 5.0

UNSTARTED = "the relay's process ended before the delivery ran"


class EmbeddedWorker:
    """Worker threads in this process, and the locks that prove that it lives.

    Args:
        broker: the broker whose messages they run.
        threads: the number of threads.
        owners: the lock of this process for each database.
    """

    def __init__(self, broker: EmbeddedBroker, threads: int, owners: Mapping[str, OwnerLock]) -> None:
        self.broker = broker
        self.owners = owners
        self._threads = threads
        self._worker: Worker | None = None

    def start(self) -> None:
        """Start the threads."""
        self.broker.open(self._threads)
        # As a process of Dramatiq's command line does; time limits depend on it.
        self.broker.emit_after("process_boot")
        self._worker = Worker(self.broker, worker_threads=self._threads, worker_timeout=IDLE_MS)
        self._worker.start()

    def in_memory(self) -> set[int]:
        """Return the deliveries that wait or run here, and those whose outcome is not written yet."""
        # In this order: an outcome is buffered before its message is forgotten.
        return self.broker.deliveries() | confirmations.unwritten().keys()

    def stop(self) -> None:
        """Wait for the handlers that run, and return the other deliveries to their tables."""
        if self._worker is not None:
            self._worker.stop(timeout=STOP_TIMEOUT_MS)
        self.broker.close()
        unstarted: dict[str, list[int]] = defaultdict(list)
        for message in self.broker.take_unstarted():
            unstarted[message.database] += message.deliveries
        for database, ids in unstarted.items():
            self._return(database, ids)

    def _return(self, database: str, ids: list[int]) -> None:
        rows = Delivery.objects.using(database).unconfirmed()

        def postpone() -> None:
            with own_connection(database):
                rows.filter(pk__in=ids, owner=self.owners[database].number).postpone(timedelta(), UNSTARTED)

        try:
            if connections[database].vendor == "postgresql":
                within(RETURN_TIMEOUT_S, postpone)
            else:
                postpone()
        except (Error, TimeoutError) as error:
            # The next process redelivers them, since this one then is dead.
            text = "could not return %d deliveries of database %r: %s"
            logger.warning(text, len(ids), database, str(error).strip(), extra={"database": database})


@contextmanager
def embedded_worker(
    broker: EmbeddedBroker, threads: int, databases: Sequence[str]
) -> Generator[EmbeddedWorker]:
    """Run a worker beside the relays of the block.

    Raises:
        OwnedElsewhere: if another process runs the handlers of a SQLite database.
    """
    with ExitStack() as locks:
        owners = {database: locks.enter_context(OwnerLock(database)) for database in databases}
        worker = EmbeddedWorker(broker, threads, owners)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()
