"""Spans and metrics of OpenTelemetry: parents, links, attributes and results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import SkipMessage
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import outbox
from outbox import ReceivedEvent
from outbox.contrib.opentelemetry import instrument, uninstrument
from outbox.errors import InvalidPayload
from outbox.models import Event
from outbox.observability import tracing
from outbox.observability.tracing import Publication, Tracer
from outbox.registry import registry
from outbox.run import Run
from tests.conftest import ROOT
from tests.support.data_flow import (
    clear_broker,
    finish,
    finish_with_retries,
    flush,
    publish,
    relay_all,
    worker,
)
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


class Recorded:
    """The spans and metrics of a test."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.metrics = MeterProvider([self._reader])

    def instrument(self, **options: Any) -> None:
        """Record spans and metrics here."""
        instrument(tracer_provider=self.traces, meter_provider=self.metrics, **options)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans of this name, in the order of their ends."""
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (found,) = self.spans(name)
        return found

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self) -> None:
        """End the recording."""
        uninstrument()
        self.traces.shutdown()
        self.metrics.shutdown()


@pytest.fixture(autouse=True)
def empty_broker() -> Iterator[None]:
    clear_broker()
    yield
    flush()
    clear_broker()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    found = Recorded()
    found.instrument()
    yield found
    found.close()


@contextmanager
def handling(topic: str, function: Callable[[Any], object], **options: Any) -> Iterator[None]:
    """Declare a handler named `traced`."""
    outbox.handler(topic, name="traced", queue_name=QUEUE, **options)(function)
    try:
        yield
    finally:
        registry.remove("traced")


def run(*topics: str) -> list[Event]:
    """Publish events, and run their deliveries."""
    with worker():
        events = [publish(topic) for topic in topics]
        relay_all()
        for event in events:
            finish_with_retries(event)
        flush()
    return events


def do_nothing(event: ReceivedEvent | list[ReceivedEvent]) -> None:
    """Handle an event."""


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Return the trace and the id of a span."""
    found = span.get_span_context()
    return found.trace_id, found.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    """Return the trace and the id of each linked span."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    """Return the trace and the id of a span's parent."""
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def test_a_run_is_a_child_of_the_publish_and_the_dispatch_has_a_link_to_it(recorded: Recorded) -> None:
    with handling("traced.mail", do_nothing):
        (event,) = run("traced.mail")
    published, process = recorded.span("publish traced.mail"), recorded.span("process traced.mail")
    dispatch = recorded.span("dispatch")
    assert parent(process) == ids(published)
    assert links(dispatch) == [ids(published)]
    assert (parent(published), parent(dispatch)) == (None, None)
    common = {"messaging.system": "outbox", "messaging.destination.name": "traced.mail"}
    assert published.attributes == {
        **common,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.message.id": str(event.pk),
        "outbox.database": "default",
    }
    assert process.attributes == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "traced",
        "messaging.message.id": str(event.pk),
        "messaging.message.conversation_id": str(event.pk),
        "outbox.database": "default",
        "outbox.delivery.id": event.deliveries.get().pk,
        "outbox.result": "succeeded",
        "outbox.retries": 0,
    }
    assert dict(dispatch.attributes or {})["messaging.batch.message_count"] == 1
    assert process.status.is_ok


def test_a_linked_run_begins_a_trace_with_the_baggage_of_the_publisher(recorded: Recorded) -> None:
    recorded.instrument(process="linked")
    seen: list[object] = []
    with handling("traced.mail", lambda event: seen.append(baggage.get_baggage("tenant"))):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            run("traced.mail")
        finally:
            context.detach(token)
    published, process = recorded.span("publish traced.mail"), recorded.span("process traced.mail")
    assert parent(process) is None
    assert ids(process)[0] != ids(published)[0]
    assert links(process) == [ids(published)]
    assert seen == ["acme"]


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'parent'; choose from"):
        instrument(process="parent")  # type: ignore[arg-type]
    assert tracing.tracers == []


def test_a_batch_has_a_link_to_each_publish(recorded: Recorded) -> None:
    with handling("traced.batch", do_nothing, batch_size=2, batch_wait=3600):
        run("traced.batch", "traced.batch")
    process = recorded.span("process traced.batch")
    assert parent(process) is None
    assert set(links(process)) == {ids(span) for span in recorded.spans("publish traced.batch")}
    assert dict(process.attributes or {})["messaging.batch.message_count"] == 2


def test_a_retry_is_an_event_of_the_failed_run_in_the_same_trace(recorded: Recorded) -> None:
    run("broken.mail")
    first, second = recorded.spans("process broken.mail")
    published = recorded.span("publish broken.mail")
    assert parent(first) == parent(second) == ids(published)
    assert [event.name for event in first.events] == ["exception", "retry"]
    retry = dict(first.events[1].attributes or {})
    assert retry["outbox.retries"] == 1
    assert isinstance(delay_s := retry["outbox.retry.delay"], float)
    assert 0 < delay_s < 1
    assert [event.name for event in second.events] == ["exception"]
    results = [dict(span.attributes or {})["outbox.result"] for span in (first, second)]
    assert results == ["retried", "failed"]
    for span in (first, second):
        assert span.status.status_code == StatusCode.ERROR
        assert dict(span.attributes or {})["error.type"] == "tests.testapp.handlers.Refused"


def test_events_of_one_call_share_a_publish(recorded: Recorded) -> None:
    with handling("traced.mail", do_nothing), worker():
        with transaction.atomic():
            events = outbox.publish_many([{"topic": "traced.mail"}, {"topic": "traced.mail"}])
        relay_all()
        for event in events:
            finish(event)
        flush()
    published = recorded.span("publish traced.mail")
    assert {parent(span) for span in recorded.spans("process traced.mail")} == {ids(published)}
    assert links(recorded.span("dispatch")) == [ids(published)]
    assert dict(published.attributes or {})["messaging.batch.message_count"] == 2


def test_a_refused_publish_is_an_error(recorded: Recorded) -> None:
    with transaction.atomic(), pytest.raises(InvalidPayload):
        outbox.publish("traced.mail", object())
    with transaction.atomic():
        assert outbox.publish_many([]) == []
    published = recorded.span("publish traced.mail")
    assert published.status.status_code == StatusCode.ERROR
    assert [event.name for event in published.events] == ["exception"]


@pytest.mark.parametrize("value", ["\x00\ud800ü", "x" * 5000])
def test_hostile_baggage_does_not_make_a_publish_fail(recorded: Recorded, value: str) -> None:
    token = context.attach(baggage.set_baggage("tenant", value.replace("\ud800", "")))
    try:
        event = publish("traced.mail", "x" * (256 * 1024 - 4096))
    finally:
        context.detach(token)
    event.refresh_from_db()
    carrier = event.headers["opentelemetry"]
    assert carrier["traceparent"]
    assert len(carrier.get("baggage", "")) < tracing.MAX_HEADER_CHARS


@pytest.mark.parametrize("header", [7, None, [], {"traceparent": 7}, {"traceparent": "00-nonsense"}, {}])
def test_a_malformed_trace_in_a_header_begins_a_new_trace(recorded: Recorded, header: object) -> None:
    with handling("traced.mail", do_nothing), worker():
        event = publish("traced.mail", headers={"opentelemetry": header})
        event.refresh_from_db()
        assert event.headers == {"opentelemetry": header}
        relay_all()
        assert finish(event) == {"traced": "succeeded"}
        flush()
    assert parent(recorded.span("process traced.mail")) is None
    assert links(recorded.span("dispatch")) == []


def test_a_handler_has_the_context_of_its_event_alone(recorded: Recorded) -> None:
    seen: list[bool] = []
    with handling("traced.mail", lambda event: seen.append(trace.get_current_span().is_recording())):
        run("traced.mail", "traced.mail")
    assert seen == [True, True]
    assert len({ids(span)[0] for span in recorded.spans("process traced.mail")}) == 2
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_async_handler_runs_in_its_span(recorded: Recorded) -> None:
    seen: list[tuple[int, int]] = []

    async def note(event: ReceivedEvent) -> None:
        found = trace.get_current_span().get_span_context()
        seen.append((found.trace_id, found.span_id))

    with handling("traced.mail", note):
        run("traced.mail")
    assert seen == [ids(recorded.span("process traced.mail"))]


def test_metrics_count_publishes_dispatches_and_results(recorded: Recorded) -> None:
    with handling("traced.mail", do_nothing):
        run("traced.mail", "broken.mail")
    by_topic = {
        point.attributes["messaging.destination.name"]: point.value
        for point in recorded.points("messaging.client.sent.messages")
    }
    assert by_topic == {"traced.mail": 1, "broken.mail": 1}
    results = {
        (point.attributes["messaging.consumer.group.name"], point.attributes["outbox.result"]): point.value
        for point in recorded.points("outbox.deliveries")
    }
    assert results == {("traced", "succeeded"): 1, ("broken", "retried"): 1, ("broken", "failed"): 1}
    dispatched = {
        point.attributes["messaging.consumer.group.name"]: point.value
        for point in recorded.points("outbox.dispatched.deliveries")
    }
    assert dispatched == {"traced": 1, "broken": 2}
    assert sum(point.value for point in recorded.points("messaging.client.consumed.messages")) == 3
    durations = {
        (point.attributes["messaging.destination.name"], point.attributes.get("error.type", "")): point.count
        for point in recorded.points("messaging.process.duration")
    }
    assert durations == {("traced.mail", ""): 1, ("broken.mail", "tests.testapp.handlers.Refused"): 2}
    # The retry does not count again.
    assert sum(point.count for point in recorded.points("outbox.latency")) == 2
    operations = [
        point.attributes["messaging.operation.name"]
        for point in recorded.points("messaging.client.operation.duration")
    ]
    assert set(operations) == {"publish", "dispatch"}


def test_a_transactional_handler_ends_its_span(recorded: Recorded) -> None:
    with handling("traced.mail", do_nothing, transactional=True):
        run("traced.mail")
    assert dict(recorded.span("process traced.mail").attributes or {})["outbox.result"] == "succeeded"


class Skipping(dramatiq.Middleware):
    """Skips each message; the first `put_off` ones are wanted later."""

    def __init__(self, put_off: int) -> None:
        self._put_off = put_off

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        if self._put_off:
            self._put_off -= 1
            broker.enqueue(message, delay=10)
        raise SkipMessage


@contextmanager
def skipping(*, put_off: int) -> Iterator[None]:
    """Add a middleware that skips each message."""
    middleware = dramatiq.get_broker().middleware
    before = list(middleware)
    dramatiq.get_broker().add_middleware(Skipping(put_off))
    try:
        yield
    finally:
        middleware[:] = before


def test_a_skipped_message_ends_its_span(recorded: Recorded) -> None:
    with handling("traced.mail", do_nothing), skipping(put_off=1):
        run("traced.mail")
    spans = recorded.spans("process traced.mail")
    assert [dict(span.attributes or {})["outbox.result"] for span in spans] == ["put_off", "discarded"]
    assert {(span.status.is_unset, span.events) for span in spans} == {(True, ())}
    assert not recorded.points("messaging.process.duration")


def test_after_uninstrument_nothing_is_recorded(recorded: Recorded) -> None:
    uninstrument()
    event = publish("test.recorded")
    event.refresh_from_db()
    assert event.headers == {}
    assert recorded.spans("publish test.recorded") == []
    assert not recorded.points("messaging.client.sent.messages")


def test_traces_take_no_statement(recorded: Recorded) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            publish("traced.mail")
        return len(captured)

    traced = statements()
    uninstrument()
    assert traced == statements()


class Faulty(Tracer):
    """Raises in each hook."""

    header = "faulty"

    def inject(self) -> dict[str, str]:
        raise RuntimeError

    @contextmanager
    def publishing(self, publication: Publication) -> Iterator[None]:
        yield
        raise RuntimeError

    @contextmanager
    def running(self, run: Run) -> Iterator[None]:
        raise RuntimeError
        yield

    def dispatched(self, dispatch: Any) -> None:
        raise RuntimeError


def test_the_error_of_a_tracer_is_logged_and_has_no_other_effect(caplog: pytest.LogCaptureFixture) -> None:
    tracer = Faulty()
    tracing.install(tracer)
    try:
        with handling("traced.mail", do_nothing):
            (event,) = run("traced.mail")
    finally:
        tracing.remove(tracer)
    assert event.deliveries.get().state == "succeeded"
    failures = [record for record in caplog.records if record.name == tracing.__name__]
    assert len(failures) == 4


PACKAGES = """
import django, sys
django.setup()
import outbox, relay.process, outbox.worker.middleware
outbox.publish
print([name for name in ("opentelemetry", "sentry_sdk") if name in sys.modules])
"""


def test_nothing_imports_the_packages_unasked() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"
