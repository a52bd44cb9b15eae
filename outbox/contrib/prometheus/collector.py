"""The collector: reads the tables when Prometheus scrapes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator

from django.db import Error
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from outbox.endpoints import recent_health
from outbox.operations.health_report import Health
from outbox.operations.recent_health import MAX_WAIT_S, RecentHealth
from outbox.operations.run_counts import RunCounts

from .health_metrics import backlog_metrics, health_metrics
from .run_metrics import run_metrics

logger = logging.getLogger(__name__)


class OutboxCollector(Collector):
    """Collects the metrics of all databases of `OUTBOX["DATABASES"]`.

    Counters begin at 0 with the first scrape of the process. A database that cannot be asked has only the
    metric `outbox_up` with 0.

    Args:
        health: measures the health, and keeps it for some seconds.
    """

    def __init__(self, *, health: RecentHealth = recent_health) -> None:
        self._health = health
        self._runs: dict[str, RunCounts] = {}
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registration asks no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics.

        Raises:
            TimeoutError: if an earlier scrape still waits for a database.
        """
        if not self._lock.acquire(timeout=MAX_WAIT_S):
            raise TimeoutError("an earlier scrape has not ended")
        try:
            found = self._collect()
        finally:
            self._lock.release()
        yield from found

    def _collect(self) -> list[Metric]:
        up = GaugeMetricFamily("outbox_up", "Whether the database could be asked", labels=["database"])
        found: list[Metric] = []
        for database, report in self._health.get_all().items():
            metrics = self._collect_one(database, report)
            up.add_metric([database], float(bool(metrics)))
            found += metrics
        return [up, *_merged(found)]

    def _collect_one(self, database: str, report: Health | Exception) -> list[Metric]:
        if isinstance(report, Exception):
            logger.warning("no metrics of database %r: %s", database, report)
            return []
        runs = self._runs.setdefault(database, RunCounts(database))
        try:
            return [
                *health_metrics(report),
                *backlog_metrics(database),
                *run_metrics(database, runs.update()),
            ]
        except Error as error:
            logger.warning("no metrics of database %r: %s", database, error)
            return []


def _merged(metrics: Iterable[Metric]) -> Iterable[Metric]:
    """Merge the families of several databases, as each name may occur once in an exposition."""
    families: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in families:
            families[metric.name].samples += metric.samples
        else:
            families[metric.name] = metric
    return families.values()
