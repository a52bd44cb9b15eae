from django.apps import AppConfig

from .files import SPANS_FILE, FileExporter


class TracedConfig(AppConfig):
    name = "tests.traced"
    label = "traced"

    def ready(self) -> None:
        """Write the spans of requests and of the outbox to a file, if the environment names one."""
        if not SPANS_FILE:
            return
        from opentelemetry import trace
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        from outbox.contrib.opentelemetry import instrument

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
        trace.set_tracer_provider(provider)
        DjangoInstrumentor().instrument()
        instrument()
