"""Quarantine of poison messages: messages that kill their worker are counted, run alone, and fail in the end.

Each worker process records its runs in its in-flight log, one for each database. A delivery in the in-flight
log of a dead process counts as crashed. Any worker of the same host reads the file, usually the worker that
replaces the dead one. Every few seconds, each worker of each host reads the ids of crashed deliveries, and
checks their rows before it runs them. Each database has a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from datetime import timedelta
from time import monotonic

from django.db import Error, connections

from outbox.conf import OutboxSettings, get_settings
from outbox.events import DeliveryRef
from outbox.host_folder import name_of, own_folder
from outbox.models import CRASHED, Delivery
from outbox.observability.telemetry import delivery_failed
from outbox.posix import call_in_forked_children
from outbox.run import Run

from .inflight_log import HAS_FILE_LOCKS, InflightEntry, InflightLog, abandoned_runs

logger = logging.getLogger(__name__)

FOLDER = "outbox-crashes"

# Redis returns the messages of a dead worker after a minute by default. RabbitMQ returns them at once, but
# marks them as redelivered.
SCAN_INTERVAL_S = 10.0
# How long the start and the end of a worker may wait for the database.
BOOT_TIMEOUT_S = 5.0
# Most handlers are done within this time. All deliveries that a dead worker ran are quarantined. If each of
# them returned to the table for another one, the last one would start a long time after the first.
QUARANTINE_TIMEOUT_S = 1.0
# The delay of a quarantined delivery that returned to the table because another one was running.
QUARANTINE_DELAY = timedelta(seconds=5)

# Bounds the memory of a worker whose database has an unexpected number of crashed deliveries.
MAX_CRASHED = 10_000


class Quarantine:
    """The crashed deliveries that this worker process knows, and the lock under which they run alone.

    Args:
        scan_interval_s: the time between two scans for crashes.
        boot_timeout_s: how long `start` and `stop` may wait for the database.
        enter_timeout_s: how long a quarantined run waits until it may run alone.
    """

    def __init__(
        self,
        *,
        scan_interval_s: float = SCAN_INTERVAL_S,
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        enter_timeout_s: float = QUARANTINE_TIMEOUT_S,
    ) -> None:
        self._scan_interval_s = scan_interval_s
        self._boot_timeout_s = boot_timeout_s
        self._enter_timeout_s = enter_timeout_s
        self._reset()
        call_in_forked_children(self._after_fork)

    def _reset(self) -> None:
        # Owned by a thread, so that the thread can always release it after an interrupt.
        self._alone = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self.inflight_logs: dict[str, InflightLog] = {}
        self._crashed: dict[str, frozenset[DeliveryRef]] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def _after_fork(self) -> None:
        for inflight_log in self.inflight_logs.values():
            inflight_log.close()
        self._reset()

    def start(self) -> None:
        """Create the in-flight logs of this process, and scan for crashes before any message runs."""
        settings = get_settings()
        if not settings.max_crashes:
            return
        if HAS_FILE_LOCKS:
            self._create_logs(settings)
        else:
            logger.warning(
                "this system has no file locks, so messages that kill this worker are not detected"
            )
        scans = [self._start_thread(alias) for alias in settings.databases]
        deadline = monotonic() + self._boot_timeout_s
        for scanned in scans:
            scanned.wait(max(0.0, deadline - monotonic()))

    def _create_logs(self, settings: OutboxSettings) -> None:
        try:
            folder = own_folder(settings.crash_dir, FOLDER)
            self.inflight_logs = {
                alias: InflightLog(folder, site_name(alias)) for alias in settings.databases
            }
        except OSError as error:
            logger.warning(
                "the in-flight log could not be created, so messages that kill this worker are not detected; "
                "set OUTBOX['CRASH_DIR']: %s",
                error,
            )

    def stop(self) -> None:
        """Delete the in-flight logs: a worker that was asked to stop has not crashed."""
        inflight_logs, threads, stop = self.inflight_logs, self._threads, self._stop
        self._clear()
        stop.set()
        deadline = monotonic() + self._boot_timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        for inflight_log in inflight_logs.values():
            inflight_log.delete()

    def scan(self) -> None:
        """Scan for the crashes of all databases."""
        for alias in get_settings().databases:
            self._scan(alias)

    def _scan(self, alias: str) -> None:
        """Count the crashes of this host, and read which deliveries have crashed on any host."""
        try:
            _count_crashes(alias)
        except (Error, OSError) as error:
            # A duplicate may have locked a row, or the database is away. The files stay for the next scan.
            extra = {"database": alias, "error": str(error)}
            logger.warning("could not count crashes yet in database %r: %s", alias, error, extra=extra)
        try:
            self._crashed[alias] = _crashed(alias)
        except Error as error:
            logger.warning("could not read the crashed deliveries of database %r: %s", alias, error)

    def has_crashed(self, run: Run) -> bool:
        """Return whether the last scan found one of a run's deliveries, without a query."""
        crashed = self._crashed.get(run.database)
        return crashed is not None and not crashed.isdisjoint(run.deliveries)

    def enter(self) -> bool:
        """Wait until this thread may run a quarantined delivery alone; return False after a timeout.

        If two of them ran at the same time, the poison message would count its crashes against both.
        """
        return self._alone.acquire(timeout=self._enter_timeout_s)

    def leave(self) -> None:
        """Allow the next quarantined run, if this thread had entered."""
        with suppress(RuntimeError):
            self._alone.release()

    def log_entry(self, run: Run) -> InflightEntry | None:
        """Return the entry of a run in the in-flight log, None if this process has no log."""
        inflight_log = self.inflight_logs.get(run.database)
        return None if inflight_log is None else inflight_log.entry(run.database, run.deliveries)

    def running(self) -> set[int]:
        """Return the deliveries that this process runs now, as far as its in-flight logs have them."""
        # A copy, as a stop may replace the logs meanwhile.
        logs = list(self.inflight_logs.values())
        return {one.id for log in logs for _alias, deliveries in log.read() for one in deliveries}

    def _start_thread(self, alias: str) -> threading.Event:
        """Start the thread of a database; return the event that it sets after its first scan."""
        scanned = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(alias, scanned, self._stop), name=f"outbox-crashes-{alias}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        return scanned

    def _run(self, alias: str, scanned: threading.Event, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._scan(alias)
            except Exception:
                logger.exception("could not scan for crashes in database %r", alias)
            finally:
                connections.close_all()
                scanned.set()
            stop.wait(self._scan_interval_s)


quarantine = Quarantine()


def site_name(alias: str) -> str:
    """Return a name for a database of this project, as a host may have workers of several projects."""
    return name_of(alias)


def _count_crashes(alias: str) -> None:
    if not HAS_FILE_LOCKS:
        return
    settings = get_settings()
    for runs in abandoned_runs(own_folder(settings.crash_dir, FOLDER), site_name(alias)):
        crashed = {one for database, deliveries in runs if database == alias for one in deliveries}
        if crashed:
            _count(alias, crashed, settings.max_crashes)


def _count(alias: str, crashed: set[DeliveryRef], max_crashes: int) -> None:
    # The file is deleted after the commit. If the commit fails, the next scan reads the file again.
    failed = Delivery.objects.using(alias).crash(crashed, max_crashes=max_crashes)
    some = ", ".join(str(one.id) for one in sorted(crashed)[:20])
    text = "a worker died while it ran %d deliveries of database %r: %s"
    logger.error(text, len(crashed), alias, some, extra={"database": alias})
    for delivery in crashed:
        if delivery.id in failed:
            delivery_failed.send_robust(
                Quarantine,
                database=alias,
                delivery_id=delivery.id,
                event_id=delivery.event_id,
                handler=failed[delivery.id],
                duration_s=0.0,
                error=CRASHED.format(max_crashes),
            )


def _crashed(alias: str) -> frozenset[DeliveryRef]:
    crashed = Delivery.objects.using(alias).crashed().order_by("-pk")
    rows = crashed.values_list("pk", "event_id")[:MAX_CRASHED]
    return frozenset(DeliveryRef(pk, str(event_id)) for pk, event_id in rows)
