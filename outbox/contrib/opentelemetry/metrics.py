"""The metrics of this process, by the semantic conventions for messaging where they have a metric."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.dispatch import Signal
from opentelemetry.metrics import Meter

from outbox.observability import telemetry
from outbox.run import Run

from .attributes import CONSUMER_GROUP, DATABASE, ERROR_TYPE, RESULT, Attributes, error_type, operation

# The advice of the semantic conventions, in seconds; latencies may be hours.
_DURATION_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_LATENCY_S = (*_DURATION_S, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)

# The results of deliveries, by their signals.
_RESULTS: dict[str, Signal] = {
    "succeeded": telemetry.delivery_succeeded,
    "retried": telemetry.delivery_retried,
    "failed": telemetry.delivery_failed,
    "discarded": telemetry.delivery_discarded,
    "redelivered": telemetry.delivery_redelivered,
}


class Metrics:
    """Counters and histograms; the counters follow the telemetry signals, after their commits."""

    def __init__(self, meter: Meter) -> None:
        counter, histogram = meter.create_counter, meter.create_histogram
        self._sent = counter("messaging.client.sent.messages", "{message}", "Published events")
        self._consumed = counter("messaging.client.consumed.messages", "{message}", "Started deliveries")
        self._dispatched = counter("outbox.dispatched.deliveries", "{delivery}", "Dispatched deliveries")
        self._results = counter("outbox.deliveries", "{delivery}", "Deliveries, by handler and result")
        self._operation = histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of a publish or a dispatch",
            explicit_bucket_boundaries_advisory=_DURATION_S,
        )
        self._process = histogram(
            "messaging.process.duration",
            "s",
            "Duration of a run",
            explicit_bucket_boundaries_advisory=_DURATION_S,
        )
        self._latency = histogram(
            "outbox.latency",
            "s",
            "Time from the publish of an event to the start of a run without retries before",
            explicit_bucket_boundaries_advisory=_LATENCY_S,
        )
        self._receivers: list[tuple[Signal, Any]] = [
            (telemetry.event_published, self._count_published),
            (telemetry.batch_dispatched, self._count_dispatched),
            *((signal, partial(self._count_result, result)) for result, signal in _RESULTS.items()),
        ]

    def connect(self) -> None:
        """Count the facts that telemetry signals report."""
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False, dispatch_uid=id(self))

    def disconnect(self) -> None:
        """End the counts."""
        for signal, _receiver in self._receivers:
            signal.disconnect(dispatch_uid=id(self))

    def operation(
        self, attributes: Attributes, duration_s: float, error: BaseException | None = None
    ) -> None:
        """Record a publish or a dispatch."""
        failed = {} if error is None else {ERROR_TYPE: error_type(error)}
        self._operation.record(duration_s, {**attributes, **failed})

    def started(self, run: Run) -> None:
        """Record the start of a run."""
        now = datetime.now(UTC)
        for event in run.events:
            attributes = {**operation("process", [event.topic]), CONSUMER_GROUP: run.handler}
            self._consumed.add(1, attributes)
            if event.created_at is not None and not run.retries:
                # The clocks of database and worker may differ.
                self._latency.record(max(0.0, (now - event.created_at).total_seconds()), attributes)

    def ended(self, attributes: Attributes, run: Run) -> None:
        """Record the duration of a run, if the worker has called the handler."""
        if run.started:
            failed = {} if run.error is None else {ERROR_TYPE: error_type(run.error)}
            self._process.record(run.duration_s, {**attributes, **failed})

    def _count_published(self, *, topic: str, **_: Any) -> None:
        self._sent.add(1, operation("publish", [topic]))

    def _count_dispatched(self, *, database: str, counts: Mapping[str, int], **_: Any) -> None:
        for handler, number in counts.items():
            self._dispatched.add(number, {DATABASE: database, CONSUMER_GROUP: handler})

    def _count_result(self, result: str, /, *, database: str, handler: str, **_: Any) -> None:
        self._results.add(1, {DATABASE: database, CONSUMER_GROUP: handler, RESULT: result})
