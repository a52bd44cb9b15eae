"""One trace of OpenTelemetry leads from a request through relay and worker to a second event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .traced import Lines, Site, lines, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def spans_file(tmp_path: Path) -> Path:
    """Return the file of all spans."""
    return tmp_path / "spans"


@pytest.fixture
def site(redis_env: dict[str, str], spans_file: Path) -> Site:
    """Return the processes of a project with OpenTelemetry."""
    settings = {"DJANGO_SETTINGS_MODULE": "tests.traced.settings"}
    return Site(redis_env | settings | {"OUTBOX_TEST_SPANS_FILE": str(spans_file)})


def named(spans: Lines, name: str) -> Lines:
    """Return the spans of this name."""
    return [span for span in spans if span["name"] == name]


def is_child(span: dict[str, Any], parent: dict[str, Any]) -> bool:
    """Return whether a span has this parent, in one trace."""
    return bool(
        span["parent_id"] == parent["context"]["span_id"]
        and span["context"]["trace_id"] == parent["context"]["trace_id"]
    )


def test_one_trace_leads_from_a_request_through_relay_and_worker_to_a_second_event(
    site: Site, spans_file: Path
) -> None:
    with site.running():
        event_id = site.publish("traced.placed")
        wait_for(spans_file, lambda spans: named(spans, "process traced.paid"), "the run of the second event")
    spans = lines(spans_file)
    (request,) = [span for span in spans if span["kind"] == "SpanKind.SERVER"]
    chain = [request]
    for name in (
        "publish traced.placed",
        "process traced.placed",
        "publish traced.paid",
        "process traced.paid",
    ):
        (span,) = named(spans, name)
        assert is_child(span, chain[-1]), name
        chain.append(span)
    assert chain[1]["attributes"]["messaging.message.id"] == event_id
    assert chain[2]["attributes"]["messaging.message.id"] == event_id
    dispatches = named(spans, "dispatch")
    linked = [link["context"]["span_id"] for span in dispatches for link in span["links"]]
    assert linked == [chain[1]["context"]["span_id"], chain[3]["context"]["span_id"]]
    assert not {span["context"]["trace_id"] for span in dispatches} & {request["context"]["trace_id"]}
