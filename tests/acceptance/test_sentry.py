"""Sentry follows a request to its handlers, and gets one event for each failed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.db.models import JSONField, Value

from outbox.models import Delivery, Event
from tests.support.processes import wait_until
from tests.testapp.tasks import resize

from .stage import relay, with_options
from .traced import Lines, Site, lines, wait_for

pytestmark = pytest.mark.slow

REQUEST = "/publish/{topic}/"


@pytest.fixture
def events_file(tmp_path: Path) -> Path:
    """Return the file of all events and transactions."""
    return tmp_path / "events"


@pytest.fixture
def env(redis_env: dict[str, str], events_file: Path) -> dict[str, str]:
    """Return the environment of a project with Sentry."""
    settings = {"DJANGO_SETTINGS_MODULE": "tests.traced.settings"}
    return redis_env | settings | {"OUTBOX_TEST_SENTRY_FILE": str(events_file)}


def transactions(found: Lines, name: str) -> Lines:
    """Return the transactions of this name."""
    return [one for one in found if one.get("type") == "transaction" and one["transaction"] == name]


def errors(found: Lines) -> Lines:
    """Return the events that are no transactions."""
    return [one for one in found if one.get("type") != "transaction"]


def trace_of(found: dict[str, Any]) -> str:
    """Return the trace of an event or transaction."""
    return str(found["contexts"]["trace"]["trace_id"])


def span(transaction: dict[str, Any], op: str) -> dict[str, Any]:
    """Return the only span of this kind."""
    (found,) = [one for one in transaction["spans"] if one["op"] == op]
    return dict(found)


def wait_for_state(event_id: str, state: str) -> Delivery:
    """Wait until the only delivery of an event has a state."""
    deliveries = Delivery.objects.filter(event=event_id, state=state)
    return wait_until(deliveries.first, 60, f"a delivery with the state {state}")


def test_the_trace_of_a_request_goes_on_in_its_handlers(env: dict[str, str], events_file: Path) -> None:
    site = Site(env)
    with site.running():
        event_id = site.publish("traced.placed")
        # The second handler sends an actor's message past the outbox, which Sentry's own middleware traces.
        wait_for(events_file, lambda found: transactions(found, "traced_plain"), "the plain actor")
        # A request ends after its answer.
        wait_for(events_file, lambda found: transactions(found, REQUEST), "the end of the request")
    found = lines(events_file)
    (request,) = transactions(found, REQUEST)
    (placed,) = transactions(found, "traced_placed")
    (paid,) = transactions(found, "traced_paid")
    (plain,) = transactions(found, "traced_plain")
    assert {trace_of(one) for one in (request, placed, paid, plain)} == {trace_of(request)}
    assert placed["contexts"]["trace"]["parent_span_id"] == span(request, "queue.publish")["span_id"]
    assert paid["contexts"]["trace"]["parent_span_id"] == span(placed, "queue.publish")["span_id"]
    assert span(request, "queue.publish")["data"]["messaging.message.id"] == event_id
    process = span(placed, "queue.process")["data"]
    assert process["messaging.message.id"] == event_id
    assert process["messaging.destination.name"] == "traced.placed"
    assert process["messaging.message.retry.count"] == 0
    assert process["messaging.message.receive.latency"] > 0
    assert errors(found) == []


def test_each_failed_run_is_one_event_with_the_tags_of_its_delivery(
    env: dict[str, str], events_file: Path
) -> None:
    site = Site(env)
    with site.running():
        delivery = wait_for_state(site.publish("traced.broken"), "failed")
        wait_for(events_file, lambda found: transactions(found, REQUEST), "the end of the request")
    found = lines(events_file)
    (request,) = transactions(found, REQUEST)
    failed = errors(found)
    assert [one["tags"]["outbox.result"] for one in failed] == ["retried", "failed"]
    runs = transactions(found, "traced_broken")
    assert [span(one, "queue.process")["data"]["messaging.message.retry.count"] for one in runs] == [0, 1]
    for one in failed:
        assert one["exception"]["values"][-1]["type"] == "Refused"
        assert trace_of(one) == trace_of(request)
        assert one["transaction"] == "traced_broken"
        assert one["tags"] | {"outbox.result": ""} == {
            "outbox.delivery": str(delivery.pk),
            "outbox.handler": "traced_broken",
            "outbox.topic": "traced.broken",
            "outbox.admin": f"https://shop.example/admin/outbox/delivery/{delivery.pk}/change/",
            "outbox.result": "",
        }


def test_an_expected_error_is_one_event_when_the_delivery_has_failed(
    env: dict[str, str], events_file: Path
) -> None:
    site = Site(env)
    with site.running():
        delivery = wait_for_state(site.publish("traced.expected"), "failed")
    (failed,) = errors(lines(events_file))
    assert failed["logger"] == "outbox"
    assert failed["tags"]["outbox.delivery"] == str(delivery.pk)
    assert failed["tags"]["outbox.admin"].endswith(f"/{delivery.pk}/change/")


def test_a_batch_that_is_split_is_one_event(env: dict[str, str], events_file: Path) -> None:
    site = Site(env)
    with site.running():
        for event_id in [site.publish("traced.batch") for _ in range(2)]:
            wait_for_state(event_id, "failed")
    failed = errors(lines(events_file))
    # One for the batch, and one for each delivery that then ran alone.
    assert len(failed) == 3
    assert {one["tags"]["outbox.topic"] for one in failed} == {"traced.batch"}


def test_a_delivery_that_fails_in_the_relay_is_one_event(env: dict[str, str], events_file: Path) -> None:
    with transaction.atomic():
        resize.send(1)
    event = Event.objects.get()
    Event.objects.filter(pk=event.pk).update(payload=Value(7, JSONField()))
    with relay(with_options(env, MAX_DISPATCH_ATTEMPTS=1)) as relaying:
        delivery = wait_for_state(str(event.pk), "failed")
        relaying.terminate()
        relaying.wait()
    (failed,) = errors(lines(events_file))
    assert failed["tags"]["outbox.delivery"] == str(delivery.pk)
    assert failed["tags"]["outbox.handler"] == "resize"
