"""Deliveries and messages of a handler's former name, which run the renamed function."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.core.management import call_command
from django.db import transaction
from django.db.models.functions import Now
from django_dramatiq.middleware import DbConnectionsMiddleware

import outbox
from outbox.checks import check_handlers
from outbox.errors import RegistrationError
from outbox.models import Delivery, Event, HandlerStats, PausedHandler
from outbox.operations.replay import replay_event
from outbox.operations.retry import retry_matching
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from outbox.testing import deliver
from tests.support.brokers import RedisBrokers
from tests.support.data_flow import finish, flush, publish, relay_all, states_of, worker
from tests.support.names import unique_name
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

with_commits = pytest.mark.django_db(transaction=True)

OLD, NEW = "former.handle", "present.handle"
LONG = {"batch_size": 100, "batch_wait": timedelta(hours=1)}


class Renamed:
    """A handler that a new release of the code renames."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def declare(self, name: str, **options: Any) -> None:
        """Declare the function under a name."""

        @outbox.handler("renamed.it", name=name, **({"queue_name": QUEUE} | options))
        def handle(events: Any) -> None:
            several = events if isinstance(events, list) else [events]
            self.payloads.append([event.payload for event in several])
            for event in several:
                Effect.objects.create(handler="renamed", event_id=event.id, key=event.key)
            assert self.may_end.wait(30)

    def rename(self, **options: Any) -> None:
        """Replace the declaration by one of the new name."""
        registry.remove(OLD)
        self.declare(NEW, former_names=[OLD], **options)


@pytest.fixture
def renamed() -> Iterator[Renamed]:
    dramatiq.get_broker().flush_all()
    made = Renamed()
    yield made
    made.may_end.set()
    dramatiq.get_broker().flush_all()
    for name in (OLD, NEW):
        if name in registry.handlers:
            registry.remove(name)


def finish_all(*events: Event) -> None:
    """Relay and run until the deliveries of events have succeeded."""

    def done() -> bool:
        relay_all()
        flush()
        return all(set(states_of(event).values()) == {"succeeded"} for event in events)

    wait_until(done, what="the deliveries to succeed")


@with_commits
@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"ordered": True}])
@pytest.mark.parametrize("dispatched", [True, False], ids=["dispatched", "pending"])
def test_a_delivery_of_the_former_name_runs_the_renamed_function(
    renamed: Renamed, options: dict[str, Any], dispatched: bool
) -> None:
    renamed.declare(OLD, **options)
    event = publish("renamed.it", 1, key="a")
    if dispatched:
        relay_all()
    renamed.rename(**options)
    with worker():
        finish_all(event)
    assert renamed.payloads == [[1]]
    assert HandlerStats.objects.filter(handler=NEW, succeeded=1).exists()
    assert not HandlerStats.objects.filter(handler=OLD, succeeded__gt=0).exists()


@with_commits
def test_deliveries_of_one_key_keep_their_order_across_a_renaming(renamed: Renamed) -> None:
    renamed.declare(OLD, ordered=True)
    events = [publish("renamed.it", n, key="a") for n in range(3)]
    relay_all()
    renamed.rename(ordered=True)
    events.append(publish("renamed.it", 3, key="a"))
    # Before its first maintenance.
    relay_all(drain=False, once=True)
    assert Delivery.objects.filter(state="dispatched").count() == 1
    with worker():
        finish_all(*events)
    assert renamed.payloads == [[0], [1], [2], [3]]


@with_commits
@pytest.mark.parametrize("ordered_before", [True, False])
def test_deliveries_without_an_ordering_key_run_after_a_renaming(
    renamed: Renamed, ordered_before: bool
) -> None:
    renamed.declare(OLD, ordered=ordered_before)
    events = [publish("renamed.it", 0)]
    if not ordered_before:
        events.append(publish("renamed.it", 1, key="a"))
    renamed.rename(ordered=True)
    relay_all()
    assert set(Delivery.objects.values_list("state", flat=True)) == {"dispatched"}
    with worker():
        finish_all(*events)


@with_commits
def test_a_handler_may_be_renamed_and_lose_its_order_at_once(renamed: Renamed) -> None:
    renamed.declare(OLD, ordered=True)
    events = [publish("renamed.it", n, key="a") for n in range(3)]
    relay_all()
    renamed.rename()
    relay_all()
    assert set(Delivery.objects.values_list("state", flat=True)) == {"dispatched"}
    with worker():
        finish_all(*events)


@with_commits
@pytest.mark.postgres
def test_a_key_stays_blocked_while_its_delivery_runs_under_the_former_name(renamed: Renamed) -> None:
    renamed.declare(OLD, ordered=True, transactional=True)
    first = publish("renamed.it", 1, key="a")
    relay_all()
    renamed.rename(ordered=True, transactional=True)
    renamed.may_end.clear()
    with worker():
        wait_until(lambda: renamed.payloads, what="the first run")
        second = publish("renamed.it", 2, key="a")
        other = publish("renamed.it", 3, key="b")
        relay_all(drain=False, once=True)
        assert states_of(second) == {NEW: "pending"}
        assert states_of(other) == {NEW: "dispatched"}
        renamed.may_end.set()
        finish_all(first)
        Delivery.objects.filter(event=second).update(available_at=Now())
        finish_all(second, other)


@with_commits
def test_a_waiting_batch_of_the_former_name_is_a_batch_of_the_present_name(renamed: Renamed) -> None:
    renamed.declare(OLD, **LONG)
    events = [publish("renamed.it", n) for n in range(2)]
    renamed.rename(**LONG)
    events.append(publish("renamed.it", 2))
    relay_all()
    assert set(Delivery.objects.values_list("handler", "waits_for")) == {(NEW, "batch")}
    Delivery.objects.update(available_at=Now())
    with worker():
        finish_all(*events)
    assert [sorted(payloads) for payloads in renamed.payloads] == [[0, 1, 2]]


@with_commits
@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_paused_handler_stays_paused_and_is_resumed_by_either_name(renamed: Renamed, name: str) -> None:
    renamed.declare(OLD)
    PausedHandler.objects.pause(OLD, "its target is down")
    event = publish("renamed.it", 1)
    renamed.rename()
    new = publish("renamed.it", 2)
    # Before its first maintenance, and afterwards.
    for options in ({"drain": False, "once": True}, {}):
        relay_all(**options)
        assert set(Delivery.objects.values_list("state", "waits_for")) == {("pending", "resume")}
    assert list(PausedHandler.objects.values_list("handler", "reason")) == [(NEW, "its target is down")]
    call_command("outbox_resume", name)
    with worker():
        finish_all(event, new)


@with_commits
def test_a_handler_that_was_paused_by_its_former_name_is_resumed_without_a_relay(renamed: Renamed) -> None:
    renamed.declare(OLD)
    PausedHandler.objects.pause(OLD)
    renamed.rename()
    call_command("outbox_resume", NEW)
    assert not PausedHandler.objects.exists()


@with_commits
def test_a_failed_delivery_of_the_former_name_is_retried_by_either_name(renamed: Renamed) -> None:
    renamed.declare(OLD)
    events = [publish("renamed.it", n) for n in range(2)]
    Delivery.objects.update(state="failed", finished_at=Now())
    renamed.rename()
    assert retry_matching("default", handler=OLD) == 2
    with worker():
        finish_all(*events)


@with_commits
def test_an_overdue_delivery_of_the_former_name_is_redelivered(renamed: Renamed) -> None:
    renamed.declare(OLD)
    event = publish("renamed.it", 1)
    relay_all()
    dramatiq.get_broker().flush_all()
    renamed.rename()
    Delivery.objects.update(confirm_by=Now() - timedelta(seconds=1))
    with worker():
        finish_all(event)


@with_commits
@pytest.mark.redis
def test_a_batch_that_the_broker_holds_under_the_former_name_is_not_redelivered(
    renamed: Renamed, redis_brokers: RedisBrokers
) -> None:
    broker = redis_brokers.make(middleware=[DbConnectionsMiddleware()])
    renamed.declare(OLD, batch_size=2, broker=broker, queue_name=unique_name())
    queue = registry.get(OLD).queue
    events = [publish("renamed.it", n) for n in range(2)]
    relay_all()
    renamed.rename(batch_size=2, broker=broker, queue_name=queue)
    relay_all()
    assert set(Delivery.objects.values_list("handler", "state")) == {(NEW, "dispatched")}
    Delivery.objects.update(confirm_by=Now() - timedelta(seconds=1))
    relay_all()
    assert set(Delivery.objects.values_list("state", "redeliveries")) == {("dispatched", 0)}
    with worker(broker):
        finish_all(*events)
    assert [sorted(payloads) for payloads in renamed.payloads] == [[0, 1]]


@with_commits
def test_a_replay_delivers_to_the_renamed_actor(renamed: Renamed) -> None:
    seen: list[int] = []

    def declare(name: str, **options: Any) -> Any:
        @dramatiq.actor(actor_class=outbox.TransactionalActor, actor_name=name, queue_name=QUEUE, **options)
        def count(number: int) -> None:
            seen.append(number)

        return count

    actor = declare(OLD)
    with transaction.atomic():
        actor.send(7)
    (event,) = Event.objects.all()
    relay_all()
    registry.remove(OLD)
    declare(NEW, former_names=[OLD])
    with worker():
        finish_all(event)
        assert replay_event("default", event.pk) == {NEW: 1}
        finish_all(event)
    assert seen == [7, 7]


@with_commits
def test_a_renamed_receiver_gets_its_snapshots_and_the_arguments_of_its_condition() -> None:
    signal = outbox.OutboxSignal("renamed.signal", key="order")
    seen: list[Any] = []

    class WithReason(outbox.conditions.Condition):
        def allows(self, sender: Any, **arguments: Any) -> bool:
            return True

        def extra(self, sender: Any, **arguments: Any) -> dict[str, Any]:
            return {"reason": "changed"}

    def declare(name: str, **options: Any) -> None:
        @outbox.receiver(signal, when=WithReason(), name=name, queue_name=QUEUE, snapshot=True, **options)
        def note(sender: Any, instance: Any, reason: str, **kwargs: Any) -> None:
            seen.append((instance.handler, reason))

    effect = Effect(handler="never saved", event_id="01890000-0000-7000-8000-000000000000")
    declare(OLD)
    with transaction.atomic():
        signal.send(None, instance=effect)
    unsubscribe(OLD)
    registry.remove(OLD)
    declare(NEW, former_names=[OLD])
    try:
        relay_all()
        with worker():
            assert set(finish(Event.objects.get()).values()) == {"succeeded"}
    finally:
        unsubscribe(NEW)
        registry.remove(NEW)
    assert seen == [("never saved", "changed")]


@pytest.mark.django_db
def test_deliver_runs_deliveries_of_the_former_name(renamed: Renamed) -> None:
    renamed.declare(OLD)
    with transaction.atomic():
        outbox.publish("renamed.it", 1)
    renamed.rename()
    assert deliver(handlers=[NEW]).succeeded == 1


def test_a_former_name_that_is_declared_keeps_its_own_handler_and_is_reported(renamed: Renamed) -> None:
    renamed.declare(OLD)
    renamed.declare(NEW, former_names=[OLD])
    assert registry.get(OLD).name == OLD
    (found,) = check_handlers(None)
    assert found.id == "outbox.E008"
    assert "the former name 'former.handle' of handler 'present.handle'" in found.msg


def test_a_former_name_of_two_handlers_is_reported(renamed: Renamed) -> None:
    renamed.declare(NEW, former_names=[OLD])
    other = Renamed()
    other.declare("another", former_names=[OLD])
    try:
        (found,) = check_handlers(None)
        assert "'present.handle' and 'another' have the same former name" in found.msg
    finally:
        registry.remove("another")


def test_a_string_of_former_names_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"give a list, such as \['old'\]"):
        outbox.handler("renamed.it", former_names="old")
