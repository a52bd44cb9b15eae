"""Deliveries that kill the worker that runs them: counted, run alone, and failed in the end.

Each worker process keeps a journal of what it runs. What a dead process left in its journal counts as
crashed; any worker of the same host reads it, soonest the one that a supervisor starts in its place. Workers
of all hosts learn every few seconds which deliveries have crashed before, and look these up before they run.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from datetime import timedelta

from django.db import Error, connections

from .conf import get_settings
from .folders import name_of, own_folder
from .journal import Journal, Noting, left_behind
from .lifecycle import delivery_failed
from .models import CRASHED, Delivery
from .runs import Run

logger = logging.getLogger(__name__)

FOLDER = "outbox-crashes"

# Redis gives back what a dead worker had after a minute by default; RabbitMQ does at once, but marks it.
LOOK_INTERVAL_S = 10.0
# How long a worker's start, or its end, may wait for the database.
BOOT_TIMEOUT_S = 5.0
# Most handlers are done sooner. All that a worker ran when it died are suspects, and were they to go back to
# the table for each other, the last one would come a long time after the first.
SOLITUDE_TIMEOUT_S = 1.0
# What a worker may have died of waits this long for another one of its kind, before it is sent again.
SUSPECT_DELAY = timedelta(seconds=5)

# More than anybody has; it bounds the memory of those who have them all the same.
MAX_SUSPECTS = 10_000


class Crashes:
    """What this worker process knows and tells of crashes."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._after_fork)

    def _reset(self) -> None:
        # Of the thread that takes it, which can give it up whatever interrupted it.
        self._alone = threading.RLock()
        self._end()

    def _end(self) -> None:
        self._journal: Journal | None = None
        self._suspects: dict[str, frozenset[int]] = {}
        self._looked = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _after_fork(self) -> None:
        if self._journal is not None:
            self._journal.forget()
        self._reset()

    def open(self) -> None:
        """Begin the journal of this process, and look at what others left, before anything runs."""
        settings = get_settings()
        if not settings.confirm or not settings.max_crashes:
            return
        try:
            self._journal = Journal(own_folder(settings.crash_dir, FOLDER), _site())
        except OSError as problem:
            logger.warning(
                "no journal, so messages that kill this worker are not noticed; set OUTBOX['CRASH_DIR']: %s",
                problem,
            )
        self._thread = threading.Thread(
            target=self._run, args=(self._looked, self._stop), name="outbox-crashes", daemon=True
        )
        self._thread.start()
        self._looked.wait(BOOT_TIMEOUT_S)

    def close(self) -> None:
        """End the journal: what a worker that was asked to stop leaves undone has not crashed."""
        journal, thread, stop = self._journal, self._thread, self._stop
        self._end()
        stop.set()
        if thread is not None:
            thread.join(BOOT_TIMEOUT_S)
        if journal is not None:
            journal.remove()

    def look(self) -> None:
        """Count what dead workers of this host were running, and learn what has crashed anywhere."""
        try:
            _count_crashes()
        except (Error, OSError) as problem:
            # Another copy may have locked a row, or the database be away; the journals stay.
            logger.warning("could not count crashes yet: %s", problem)
        try:
            self._suspects = {alias: _suspects(alias) for alias in get_settings().databases}
        except Error as problem:
            logger.warning("could not look for crashed deliveries: %s", problem)

    def suspects(self, run: Run) -> bool:
        """Return whether one of a run's deliveries has crashed before, as far as is known without asking."""
        suspects = self._suspects.get(run.database)
        return suspects is not None and not suspects.isdisjoint(run.deliveries)

    def claim_solitude(self) -> bool:
        """Let one suspect run; return whether it may, as no other one runs in this process.

        Were two to run at the same time, the one at fault would bring its crashes upon the other.
        """
        return self._alone.acquire(timeout=SOLITUDE_TIMEOUT_S)

    def end_solitude(self) -> None:
        """Let another suspect run, if this thread had claimed it for its own."""
        with suppress(RuntimeError):
            self._alone.release()

    def noting(self, run: Run) -> Noting | None:
        """Return what keeps a note of a run that outlives this process, None if nothing does."""
        journal = self._journal
        return None if journal is None else journal.noting(run.database, run.deliveries)

    def _run(self, looked: threading.Event, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.look()
            except Exception:
                logger.exception("could not look for crashes")
            finally:
                connections.close_all()
                looked.set()
            stop.wait(LOOK_INTERVAL_S)


crashes = Crashes()


def _count_crashes() -> None:
    settings = get_settings()
    for noted in left_behind(own_folder(settings.crash_dir, FOLDER), _site()):
        for alias in settings.databases:
            ids = {one for database, deliveries in noted if database == alias for one in deliveries}
            if ids:
                _count(alias, ids, settings.max_crashes)


def _count(alias: str, ids: set[int], max_crashes: int) -> None:
    # The journal goes when this has been committed; if it cannot be, the next look finds it again.
    failed = Delivery.objects.using(alias).filter(pk__in=ids).crash(max_crashes=max_crashes)
    some = ", ".join(map(str, sorted(ids)[:20]))
    logger.error("a worker died while it ran %d deliveries of database %r: %s", len(ids), alias, some)
    for delivery_id, handler in failed.items():
        error = CRASHED.format(max_crashes)
        delivery_failed.send_robust(
            Crashes, database=alias, delivery_id=delivery_id, handler=handler, error=error
        )


def _suspects(alias: str) -> frozenset[int]:
    crashed = Delivery.objects.using(alias).crashed().order_by("-pk")
    return frozenset(crashed.values_list("pk", flat=True)[:MAX_SUSPECTS])


def _site() -> str:
    """Name the databases: a host may have workers of several projects."""
    return name_of(*sorted(get_settings().databases))
