"""The spans `publish`, `dispatch` and `process`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, get_args

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from outbox.observability.tracing import Dispatch, Publication, Tracer, carried
from outbox.run import Run

from .attributes import (
    BATCH_COUNT,
    CONSUMER_GROUP,
    CONVERSATION_ID,
    DATABASE,
    DELIVERY_ID,
    ERROR_TYPE,
    HANDLERS,
    MESSAGE_ID,
    RESULT,
    RETRIES,
    RETRY_DELAY,
    Attributes,
    error_type,
    operation,
    span_name,
)
from .metrics import Metrics

ProcessMode = Literal["child", "linked"]
PROCESS_MODES: tuple[str, ...] = get_args(ProcessMode)

# The limit of OpenTelemetry's SDK, which drops more links.
MAX_LINKS = 128


class OutboxTracer(Tracer):
    """Records the spans of this process."""

    header = "opentelemetry"

    def __init__(self, tracer: trace.Tracer, *, metrics: Metrics, process: ProcessMode) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._process = process

    def inject(self) -> Mapping[str, str]:
        """Return the current context, as the global propagator writes it."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    @contextmanager
    def publishing(self, publication: Publication) -> Iterator[None]:
        """Record a span around a publish, which is the parent of its events' runs."""
        common = operation("publish", publication.topics)
        attributes: Attributes = {**common, DATABASE: publication.database}
        if len(publication.topics) > 1:
            attributes[BATCH_COUNT] = len(publication.topics)
        started = time.perf_counter()
        failure: BaseException | None = None
        try:
            with self._tracer.start_as_current_span(
                span_name(common), kind=SpanKind.PRODUCER, attributes=attributes
            ) as span:
                yield
                if len(publication.event_ids) == 1:
                    span.set_attribute(MESSAGE_ID, str(publication.event_ids[0]))
        except BaseException as error:
            failure = error
            raise
        finally:
            self._metrics.operation(common, time.perf_counter() - started, failure)

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        """Record a span around a run, whose parent or link is the publish of its event."""
        published = [
            propagate.extract(carried(event.headers, self.header), Context()) for event in run.events
        ]
        child = self._process == "child" and not run.batched
        # A handler sees no context of an earlier message. Without a parent it still has the baggage.
        outer = published[0] if len(published) == 1 else Context()
        if not child:
            outer = trace.set_span_in_context(trace.INVALID_SPAN, outer)
        token = contexts.attach(outer)
        try:
            yield from self._process_span(run, () if child else _links(published))
        finally:
            contexts.detach(token)

    def _process_span(self, run: Run, links: Iterable[Link]) -> Iterator[None]:
        common = operation("process", [event.topic for event in run.events])
        common[CONSUMER_GROUP] = run.handler
        with self._tracer.start_as_current_span(
            span_name(common),
            kind=SpanKind.CONSUMER,
            attributes={**common, **_of_run(run)},
            links=list(links),
        ) as span:
            self._metrics.started(run)
            yield
            _note_end(span, run)
            self._metrics.ended(common, run)

    def dispatched(self, dispatch: Dispatch) -> None:
        """Record the span of a batch, with links to the publishes of its events."""
        common = operation("dispatch")
        ended_ns = time.time_ns()
        headers = (text for text in dispatch.headers if f'"{self.header}"' in text)
        carriers = (carried(_decoded(text), self.header) for text in headers)
        span = self._tracer.start_span(
            span_name(common),
            # A batch has no parent: its events have different ones.
            context=Context(),
            kind=SpanKind.CLIENT,
            attributes={
                **common,
                DATABASE: dispatch.database,
                BATCH_COUNT: sum(dispatch.counts.values()),
                HANDLERS: sorted(dispatch.counts),
            },
            links=list(_links(propagate.extract(carrier, Context()) for carrier in carriers)),
            start_time=ended_ns - int(dispatch.duration_s * 1e9),
        )
        span.end(ended_ns)
        self._metrics.operation(common, dispatch.duration_s)


def _links(published: Iterable[Context]) -> Iterator[Link]:
    """Return a link to each publish; the events of one call of `publish_many` share a publish."""
    spans = (trace.get_current_span(context).get_span_context() for context in published)
    distinct = {(span.trace_id, span.span_id): span for span in islice(spans, MAX_LINKS) if span.is_valid}
    return map(Link, distinct.values())


def _of_run(run: Run) -> Attributes:
    attributes: Attributes = {DATABASE: run.database, RETRIES: run.retries}
    if run.batched:
        attributes[BATCH_COUNT] = len(run.deliveries)
    else:
        attributes |= {
            DELIVERY_ID: run.deliveries[0].id,
            MESSAGE_ID: str(run.event.id),
            CONVERSATION_ID: run.event.correlation_id,
        }
    return attributes


def _note_end(span: Span, run: Run) -> None:
    span.set_attribute(RESULT, run.result)
    if run.error is not None:
        span.record_exception(run.error)
        span.set_attribute(ERROR_TYPE, error_type(run.error))
    if run.error is not None or run.result == "failed":
        span.set_status(StatusCode.ERROR, str(run.error or "failed by a middleware"))
    if run.retry is not None and run.result == "retried":
        delay_s = run.retry.delay.total_seconds()
        span.add_event("retry", {RETRIES: run.retries + 1, RETRY_DELAY: delay_s})


def _decoded(headers: str) -> Mapping[str, Any]:
    decoded = json.loads(headers)
    return decoded if isinstance(decoded, dict) else {}
