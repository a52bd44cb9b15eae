"""OpenTelemetry: spans of publishes, dispatches and runs, and metrics.

Call `instrument()` once in each process, such as in your app's `ready()`. The extra `[opentelemetry]`
installs the API of OpenTelemetry; the project chooses SDK and exporter.
"""

from __future__ import annotations

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import TracerProvider, get_tracer

import outbox
from outbox.observability import tracing

from .metrics import Metrics
from .spans import PROCESS_MODES, OutboxTracer, ProcessMode

__all__ = ["instrument", "uninstrument"]

_SCHEMA = "https://opentelemetry.io/schemas/1.37.0"

_installed: list[tuple[OutboxTracer, Metrics]] = []


def instrument(
    *,
    process: ProcessMode = "child",
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Begin to record spans and metrics in this process; a second call replaces the first.

    Args:
        process: `child` makes a run a part of the publisher's trace. `linked` begins a trace for each run,
            with a link to the publisher's.
        tracer_provider: the global provider if not given.
        meter_provider: the global provider if not given.

    Raises:
        ValueError: for another value of `process`.
    """
    if process not in PROCESS_MODES:
        raise ValueError(f"process is {process!r}; choose from {PROCESS_MODES!r}")
    uninstrument()
    version = outbox.__version__
    metrics = Metrics(get_meter("outbox", version, meter_provider, _SCHEMA))
    tracer = OutboxTracer(
        get_tracer("outbox", version, tracer_provider, _SCHEMA), metrics=metrics, process=process
    )
    metrics.connect()
    tracing.install(tracer)
    _installed.append((tracer, metrics))


def uninstrument() -> None:
    """End the recording; do nothing if it has not begun."""
    while _installed:
        tracer, metrics = _installed.pop()
        tracing.remove(tracer)
        metrics.disconnect()
