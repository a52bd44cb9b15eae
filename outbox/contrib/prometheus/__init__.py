"""Prometheus: the backlog, the processes and the runs of all handlers, read from the tables.

Every process can show the figures of all processes, since the tables have them. Scrape one process; the
extra `[prometheus]` installs the client.
"""

from __future__ import annotations

from .collector import OutboxCollector
from .server import MetricsServer
from .views import metrics_view

__all__ = ["MetricsServer", "OutboxCollector", "metrics_view"]
