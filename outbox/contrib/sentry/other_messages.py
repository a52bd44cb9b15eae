"""Sentry's own Dramatiq middleware, kept for the messages that the outbox does not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import dramatiq
from sentry_sdk.integrations.dramatiq import SentryMiddleware


def leave_deliveries(broker: dramatiq.Broker) -> None:
    """Replace Sentry's middleware of a broker, so that it ignores the messages of deliveries."""
    for index, middleware in enumerate(broker.middleware):
        if isinstance(middleware, SentryMiddleware):
            broker.middleware[index] = cast(dramatiq.Middleware, OtherMessages(middleware))


class OtherMessages:
    """Sentry's middleware, except that it ignores messages with deliveries.

    It would begin a second transaction for each run, in the trace of the relay, and a new trace for each
    retry.
    """

    def __init__(self, replaced: SentryMiddleware) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced, name)

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        """Add the current trace to a message."""
        if not _has_delivery(message):
            self._replaced.before_enqueue(broker, message, cast(int, delay))

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        """Begin a transaction."""
        if not _has_delivery(message):
            self._replaced.before_process_message(broker, message)

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: Any,
        *,
        result: Any = None,
        exception: Any = None,
    ) -> None:
        """End the transaction, and capture an error."""
        if not _has_delivery(message):
            self._replaced.after_process_message(broker, message, result=result, exception=exception)

    after_skip_message = after_process_message


def _has_delivery(message: Any) -> bool:
    return isinstance(message.options.get("outbox"), Mapping)
