"""The hooks that write spans, transactions and error events for Sentry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import dramatiq
import sentry_sdk
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Shutdown
from sentry_sdk.consts import OP, SPANDATA, SPANSTATUS
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.tracing import BAGGAGE_HEADER_NAME, SENTRY_TRACE_HEADER_NAME, TransactionSource
from sentry_sdk.utils import event_from_exception

from outbox.observability.tracing import Publication, Tracer, carried
from outbox.registry import registry
from outbox.run import Run

from .active import IDENTIFIER, is_active
from .log_events import Reported, drop_log_of
from .other_messages import leave_deliveries
from .tags import destination, tags_of_run

ORIGIN = f"auto.queue.{IDENTIFIER}"

# Errors by which a run ends early as intended. A run that is interrupted by a shutdown is run again.
_NO_FAILURES = (Retry, RateLimitExceeded, Shutdown)


class SentryTracer(Tracer):
    """The hooks of the integration."""

    header = "sentry"

    def __init__(self) -> None:
        self._reported = Reported()
        add_global_event_processor(self._reported.process)

    def inject(self) -> Mapping[str, str]:
        """Return the current trace as Sentry's two headers."""
        if not is_active():
            return {}
        carrier = {
            SENTRY_TRACE_HEADER_NAME: sentry_sdk.get_traceparent(),
            BAGGAGE_HEADER_NAME: sentry_sdk.get_baggage(),
        }
        return {name: text for name, text in carrier.items() if text}

    @contextmanager
    def publishing(self, publication: Publication) -> Iterator[None]:
        """Record a span of the type `queue.publish`, if the caller has a transaction of Sentry."""
        if not is_active() or sentry_sdk.get_current_span() is None:
            yield
            return
        topic = destination(publication.topics)
        with sentry_sdk.start_span(op=OP.QUEUE_PUBLISH, name=topic, origin=ORIGIN) as span:
            span.set_data(SPANDATA.MESSAGING_SYSTEM, "outbox")
            span.set_data(SPANDATA.MESSAGING_DESTINATION_NAME, topic)
            yield
            if len(publication.event_ids) == 1:
                span.set_data(SPANDATA.MESSAGING_MESSAGE_ID, str(publication.event_ids[0]))

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        """Continue the publisher's trace in a transaction around a run, and capture the error of the run."""
        if not is_active():
            yield
            return
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.set_transaction_name(run.handler, source=TransactionSource.TASK)
            for name, value in tags_of_run(run).items():
                scope.set_tag(name, value)
            scope.add_event_processor(drop_log_of(run))
            with self._transaction(run), self._process_span(run):
                yield
                self._capture_error(run)

    @contextmanager
    def _transaction(self, run: Run) -> Iterator[None]:
        # A batch has events of several traces.
        headers = {} if run.batched else carried(run.event.headers, self.header)
        transaction = sentry_sdk.continue_trace(
            headers,
            op=OP.QUEUE_TASK_DRAMATIQ,
            name=run.handler,
            source=TransactionSource.TASK,
            origin=ORIGIN,
        )
        with sentry_sdk.start_transaction(transaction) as started:
            yield
            failed = run.result == "failed" or _is_failure(run)
            started.set_status(SPANSTATUS.INTERNAL_ERROR if failed else SPANSTATUS.OK)

    @contextmanager
    def _process_span(self, run: Run) -> Iterator[None]:
        topic = destination(event.topic for event in run.events)
        with sentry_sdk.start_span(op=OP.QUEUE_PROCESS, name=topic, origin=ORIGIN) as span:
            span.set_data(SPANDATA.MESSAGING_SYSTEM, "outbox")
            span.set_data(SPANDATA.MESSAGING_DESTINATION_NAME, topic)
            span.set_data(SPANDATA.MESSAGING_MESSAGE_ID, str(run.events[0].id))
            span.set_data(SPANDATA.MESSAGING_MESSAGE_RETRY_COUNT, run.retries)
            if (published_at := run.events[0].created_at) is not None:
                latency = datetime.now(UTC) - published_at
                # The clocks of database and worker may differ.
                milliseconds = max(0.0, latency.total_seconds() * 1000)
                span.set_data(SPANDATA.MESSAGING_MESSAGE_RECEIVE_LATENCY, milliseconds)
            yield

    def _capture_error(self, run: Run) -> None:
        if run.error is None or not _is_failure(run):
            return
        event, hint = event_from_exception(
            run.error,
            client_options=sentry_sdk.get_client().options,
            mechanism={"type": IDENTIFIER, "handled": False},
        )
        sentry_sdk.set_tag("outbox.result", run.result)
        # The record of the worker's logger had the same error, and its event was dropped.
        DedupeIntegration.reset_last_seen()
        sentry_sdk.capture_event(event, hint=hint)
        if run.result == "failed":
            self._reported.add(run.database, (delivery.id for delivery in run.deliveries))

    def joined(self, broker: dramatiq.Broker) -> None:
        """Let Sentry's own middleware of a broker see only messages that the outbox does not run."""
        leave_deliveries(broker)


def _is_failure(run: Run) -> bool:
    """Return whether the error of a run is one that the handler's options do not name in `throws`."""
    handler = registry.handlers.get(run.handler)
    expected = handler.actor.options.get("throws") if handler is not None else None
    return (
        run.error is not None
        and not isinstance(run.error, _NO_FAILURES)
        and not isinstance(run.error, expected or ())
    )
