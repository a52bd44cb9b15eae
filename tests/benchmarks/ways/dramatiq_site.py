"""The broker of a measured process: the same middleware for this package and for Dramatiq alone."""

from __future__ import annotations

from typing import Any

from tests.benchmarks import site

QUEUE = f"{site.PREFIX}_queue"


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
        return {
            "BROKER": "dramatiq.brokers.redis.RedisBroker",
            "OPTIONS": options,
            "MIDDLEWARE": middleware,
        }
    return {
        "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
        "OPTIONS": {"url": site.BROKER_URL},
        "MIDDLEWARE": middleware,
    }
