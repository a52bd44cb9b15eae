"""The broker of a measured process, with the same middleware for this package and for plain Dramatiq."""

from __future__ import annotations

import os
from typing import Any

from tests.benchmarks import site

QUEUE = f"{site.PREFIX}_queue"

REDIS_BROKERS = {"package": "outbox.brokers.RedisBroker", "dramatiq": "dramatiq.brokers.redis.RedisBroker"}
# Each handled event takes this much longer.
PAUSE_S = float(os.environ.get("BENCH_PAUSE_S", "0"))


def dramatiq_broker() -> dict[str, Any]:
    """Return the setting DRAMATIQ_BROKER."""
    middleware = [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.ShutdownNotifications",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Pipelines",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ]
    if site.BROKER_URL.startswith("redis"):
        options = {"url": site.BROKER_URL, "namespace": site.PREFIX}
        if heartbeat_timeout_ms := os.environ.get("BENCH_HEARTBEAT_TIMEOUT_MS"):
            options["heartbeat_timeout"] = int(heartbeat_timeout_ms)
        return {
            "BROKER": REDIS_BROKERS[os.environ.get("BENCH_BROKER_CLASS", "package")],
            "OPTIONS": options,
            "MIDDLEWARE": middleware,
        }
    return {
        "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
        "OPTIONS": {"url": site.BROKER_URL},
        "MIDDLEWARE": middleware,
    }
