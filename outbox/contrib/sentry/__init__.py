"""Sentry: one trace from a request to its handlers, and one event for each failed run.

    sentry_sdk.init(dsn=…, integrations=[OutboxIntegration()])

Call it in the settings, before the brokers are made. The extra `[sentry]` installs `sentry-sdk`.
"""

from __future__ import annotations

from sentry_sdk.integrations import Integration

from outbox.observability import tracing

from .active import IDENTIFIER
from .tracer import SentryTracer

__all__ = ["OutboxIntegration"]


class OutboxIntegration(Integration):
    """Traces and error events of the outbox.

    Args:
        site_url: the address of the site, such as `https://shop.example`, for the links of the tag
            `outbox.admin`.
    """

    identifier = IDENTIFIER

    def __init__(self, *, site_url: str = "") -> None:
        self.site_url = site_url.rstrip("/")

    @staticmethod
    def setup_once() -> None:
        """Install the hooks; they do nothing while a client without this integration is active."""
        tracing.install(SentryTracer())
