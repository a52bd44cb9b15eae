"""Options of handlers that change while deliveries are under way: a restart of all processes changes them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from django.db.models.functions import Now

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from tests.support.data_flow import flush, relay_all, worker
from tests.support.names import unique_name
from tests.support.processes import wait_until
from tests.testapp.handlers import OTHER_QUEUE, QUEUE
from tests.testapp.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "changing"


def declare(**options: Any) -> None:
    """Declare the handler as a process with new code does."""
    if NAME in registry.handlers:
        registry.remove(NAME)

    @outbox.handler("change.it", name=NAME, **({"queue_name": QUEUE, "max_retries": 0} | options))
    def changing(events: Any) -> None:
        for event in events if isinstance(events, list) else [events]:
            Effect.objects.create(handler=NAME, event_id=event.id, key=event.key)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    dramatiq.get_broker().flush_all()
    yield
    dramatiq.get_broker().flush_all()
    if NAME in registry.handlers:
        registry.remove(NAME)


def states() -> dict[str, int]:
    found: dict[str, int] = {}
    for (state,) in Delivery.objects.values_list("state"):
        found[state] = found.get(state, 0) + 1
    return found


def publish_some(count: int = 3, key: str = "a") -> list[Event]:
    with transaction.atomic():
        return outbox.publish_many([outbox.EventData("change.it", key=key) for _ in range(count)])


def finish_all(events: list[Event]) -> None:
    """Relay and run until all deliveries have succeeded; each handler must have run once."""

    def done() -> bool:
        relay_all()
        flush()
        return states() == {"succeeded": len(events)}

    with worker():
        wait_until(done, what=f"the deliveries to succeed: {states()}")
    ids = list(Effect.objects.filter(handler=NAME).values_list("event_id", flat=True))
    assert sorted(ids) == sorted(event.id for event in events)


# ---------------------------------------------------------------- ordered


def test_a_handler_that_is_no_longer_ordered_gets_its_waiting_deliveries_in_one_run_of_a_relay() -> None:
    declare(ordered=True)
    publish_some(2000)
    relay_all()
    assert states() == {"dispatched": 1, "pending": 1999}
    declare()
    relay_all()
    assert states() == {"dispatched": 2000}


def test_a_failed_delivery_blocks_no_key_once_its_handler_is_not_ordered() -> None:
    declare(ordered=True)
    publish_some(3)
    Delivery.objects.filter(pk=Delivery.objects.earliest("pk").pk).update(state="failed", finished_at=Now())
    relay_all()
    assert states() == {"failed": 1, "pending": 2}
    declare()
    relay_all()
    assert states() == {"failed": 1, "dispatched": 2}


def test_other_ordered_handlers_keep_their_order_when_one_handler_loses_it() -> None:
    declare(ordered=True)

    @outbox.handler("change.it", name="still_ordered", queue_name=QUEUE, ordered=True)
    def still_ordered(event: Any) -> None: ...

    try:
        publish_some(3)
        relay_all()
        declare()
        relay_all()
        dispatched = Delivery.objects.filter(state="dispatched").values_list("handler", flat=True)
        assert sorted(dispatched) == [NAME, NAME, NAME, "still_ordered"]
    finally:
        registry.remove("still_ordered")


def test_a_handler_that_becomes_ordered_gets_older_deliveries_too() -> None:
    declare()
    events = publish_some(3)
    declare(ordered=True)
    events += publish_some(3)
    finish_all(events)


# ---------------------------------------------------------------- batch and transactional


BATCH = {"batch_size": 2, "batch_wait": timedelta(0)}
WAITING_BATCH = {"batch_size": 100, "batch_wait": timedelta(hours=1)}

CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (BATCH, {}),
    (WAITING_BATCH, {}),
    ({}, BATCH),
    (BATCH, {"ordered": True}),
    (WAITING_BATCH, {"ordered": True}),
    ({"ordered": True}, BATCH),
    ({"transactional": True}, {}),
    ({}, {"transactional": True}),
    (BATCH, {"transactional": True}),
    ({"ordered": True, "transactional": True}, {}),
    ({"ordered": True}, {"ordered": True, "on_failure": "skip"}),
    ({"queue_name": OTHER_QUEUE}, {}),
    ({}, {"queue_name": OTHER_QUEUE}),
]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("dispatched", [True, False], ids=["dispatched", "pending"])
def test_every_delivery_runs_once_after_a_change(
    before: dict[str, Any], after: dict[str, Any], dispatched: bool
) -> None:
    declare(**before)
    events = publish_some(3)
    if dispatched:
        relay_all()
    declare(**after)
    events += publish_some(3)
    # A delivery keeps the due time that its former batch_wait gave it.
    Delivery.objects.filter(state="pending").update(available_at=Now())
    finish_all(events)


# ---------------------------------------------------------------- queue and name


def test_a_relay_of_some_queues_dispatches_deliveries_that_were_published_to_the_former_queue() -> None:
    old, new = unique_name(), unique_name()
    declare(queue_name=old)
    publish_some(3)
    relay_all(queues=(new,))
    assert states() == {"pending": 3}
    declare(queue_name=new)
    relay_all(queues=(new,))
    assert states() == {"dispatched": 3}
    assert set(Delivery.objects.values_list("queue", flat=True)) == {new}


def test_deliveries_of_a_removed_handler_are_delivered_once_it_is_declared_again() -> None:
    declare()
    events = publish_some(3)
    registry.remove(NAME)
    relay_all()
    assert states() == {"pending": 3}
    declare()
    Delivery.objects.update(available_at=Now())
    finish_all(events)
