"""The gauges of a health report and of the backlog; labels have no payloads, keys or errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from django.db import connections
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from outbox.models.server_facts import read_tables
from outbox.operations.backlog import OTHERS, backlogs
from outbox.operations.health_report import Health, ProblemKind, Verdict
from outbox.registry import registry

TABLES = ("outbox_event", "outbox_delivery")


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"outbox_{name}", documentation, labels=["database", *labels])


def health_metrics(health: Health) -> Iterator[Metric]:
    """Yield the gauges of a report."""
    database, figures = health.database, health.figures
    verdict = _gauge("verdict", "1 for the present verdict: ok, warning or trouble", "verdict")
    for one in Verdict:
        verdict.add_metric([database, one], float(one == health.verdict))
    yield verdict
    problems = _gauge("problems", "Problems of the health report, by kind", "kind")
    kinds = Counter(problem.kind for problem in health.problems)
    for kind in ProblemKind:
        problems.add_metric([database, kind], kinds[kind])
    yield problems
    for name, documentation, value in (
        ("oldest_due_seconds", "Wait of the oldest due delivery", figures.oldest_due_s),
        (
            "oldest_unconfirmed_seconds",
            "Age of the oldest unconfirmed delivery",
            figures.oldest_unconfirmed_s,
        ),
        ("due_deliveries", "Deliveries that a relay may claim now", figures.due),
        ("scheduled_deliveries", "Pending deliveries with a due time in the future", figures.scheduled),
        ("overdue_deliveries", "Unconfirmed deliveries past CONFIRM_TIMEOUT", figures.overdue),
        ("put_off_deliveries", "Due deliveries that cannot be dispatched or started now", figures.put_off),
        ("paused_handlers", "Paused handlers, at most 20", len(health.paused)),
    ):
        gauge = _gauge(name, documentation)
        gauge.add_metric([database], value)
        yield gauge
    yield from _process_metrics(health)
    blocked = _gauge("blocked_keys", "Blocked ordering keys, at most 20", "handler")
    known = registry.handlers
    names = (key.handler if key.handler in known else OTHERS for key in health.blocked_keys)
    for handler, number in Counter(names).items():
        blocked.add_metric([database, handler], number)
    yield blocked


def _process_metrics(health: Health) -> Iterator[Metric]:
    alive = _gauge("processes_alive", "Live relays and workers", "kind")
    for kind in ("relay", "worker"):
        alive.add_metric([health.database, kind], health.alive(kind))
    yield alive
    for name, documentation, attribute in (
        ("queue_workers", "Live worker processes of a queue", "workers"),
        ("queue_threads", "Threads of the live workers of a queue", "threads"),
        (
            "queue_oldest_unconfirmed_seconds",
            "Age of the oldest unconfirmed delivery of a queue",
            "oldest_unconfirmed_s",
        ),
    ):
        gauge = _gauge(name, documentation, "queue")
        for queue in health.queues:
            gauge.add_metric([health.database, queue.name or OTHERS], getattr(queue, attribute))
        yield gauge


def backlog_metrics(database: str) -> Iterator[Metric]:
    """Yield the gauges of the backlog by handler, and of dead rows."""
    backlog = _gauge(
        "backlog_deliveries", "Deliveries by handler and state, up to 100,000", "queue", "handler", "state"
    )
    for one in backlogs(database):
        backlog.add_metric([database, one.queue, one.handler, one.state], one.deliveries)
    yield backlog
    dead = _gauge("dead_rows", "PostgreSQL's estimate of the dead rows of a table", "table")
    for table in read_tables(connections[database], *TABLES):
        dead.add_metric([database, table["name"]], table["dead"])
    yield dead
