"""Spans and events as lines of JSON in a file, which all processes of a test append to."""

import json
import os
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

SPANS_FILE = os.environ.get("OUTBOX_TEST_SPANS_FILE", "")
SENTRY_FILE = os.environ.get("OUTBOX_TEST_SENTRY_FILE", "")


def append(path: str, line: Any) -> None:
    """Append one line in one write, so that lines of several processes do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(descriptor)


class FileExporter(SpanExporter):
    """Writes spans to a file."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            append(SPANS_FILE, json.loads(span.to_json(indent=None)))
        return SpanExportResult.SUCCESS


class FileTransport(Transport):
    """Writes the events and transactions of Sentry to a file."""

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.type in ("event", "transaction"):
                append(SENTRY_FILE, json.loads(item.get_bytes()))
