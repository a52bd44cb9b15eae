"""Packed handlers: many deliveries in one message, each with an outcome of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from django.db.models.signals import post_save
from dramatiq.middleware import Shutdown, SkipMessage, TimeLimitExceeded
from dramatiq.threading import raise_thread_exception

import outbox
from outbox import current_event, packs
from outbox.collectors import unsubscribe
from outbox.crashes import Crashes, _site
from outbox.journal import Journal, left_behind
from outbox.models import Delivery, Event, HandlerStats, PausedHandler
from outbox.registry import registry
from outbox.runs import current_run
from outbox.testing import deliver, fail_handler
from tests.helpers import finish, flush, publish, relay_all, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect, Product

# The ids begin anew, since at some (400 is one) the deliveries of a test would be two packs.
pytestmark = pytest.mark.django_db(transaction=True, reset_sequences=True)


class Refused(Exception):
    """What the packed handlers raise."""


class Packed:
    """What the packed handler of a test has seen, and what it does about a payload."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.actions: dict[Any, Callable[[], object]] = {}

    def __call__(self, event: outbox.ReceivedEvent) -> None:
        self.seen.append(event.payload)
        self.actions.get(event.payload, lambda: None)()


@pytest.fixture
def declare() -> Iterator[Callable[..., Packed]]:
    """Return a function that declares the packed handler of `pack.*`."""

    def declare(**options: Any) -> Packed:
        packed = Packed()
        defaults = {"pack": 50, "queue_name": QUEUE, "name": "packed", "min_backoff": 5, "max_backoff": 5}
        outbox.handler("pack.*", **(defaults | options))(lambda event: packed(event))
        return packed

    dramatiq.get_broker().flush_all()
    yield declare
    registry.remove("packed")
    flush()
    dramatiq.get_broker().flush_all()


@pytest.fixture
def packed(declare: Callable[..., Packed]) -> Packed:
    return declare(max_retries=1)


def publish_all(*payloads: Any, **options: Any) -> list[Event]:
    with transaction.atomic():
        return outbox.publish_many(
            [{"topic": "pack.it", "payload": payload, **options} for payload in payloads]
        )


def messages() -> list[dict[str, Any]]:
    """Return what waits in the queue."""
    return [json.loads(data) for data in list(dramatiq.get_broker().queues[QUEUE].queue)]


def refuse() -> None:
    raise Refused("not this one")


def delivery_of(event: Event) -> Delivery:
    delivery: Delivery = event.deliveries.get()
    return delivery


def finish_all(events: list[Event]) -> list[str]:
    """Work until all is done, retries included, and return the states."""
    with worker():
        for event in events:
            wait_until(lambda event=event: _is_done(event), what=f"{event} to be done")  # type: ignore[misc]
    return [state for event in events for state in statuses(event).values()]


def _is_done(event: Event) -> bool:
    relay_all()
    return delivery_of(event).status not in ("pending", "dispatched")


def test_due_deliveries_travel_in_as_few_messages_as_the_size_allows(packed: Packed) -> None:
    events = publish_all(*range(120))
    relay_all()
    sizes = [len(message["options"]["outbox"]["pack"]) for message in messages()]
    assert sum(sizes) == 120
    assert 3 <= len(sizes) <= 4
    assert max(sizes) <= 50
    assert finish_all(events) == ["succeeded"] * 120
    assert sorted(packed.seen) == list(range(120))


def test_a_pack_is_worked_through_in_order(packed: Packed) -> None:
    events = publish_all(*range(5))
    assert finish_all(events) == ["succeeded"] * 5
    assert packed.seen == sorted(packed.seen)


def test_one_that_fails_goes_back_alone_and_the_others_go_on(packed: Packed) -> None:
    packed.actions[1] = lambda: packed.actions.pop(1) and refuse()
    events = publish_all(0, 1, 2)
    relay_all()
    with worker():
        assert finish(events[2]) == {"packed": "succeeded"}
        back = wait_until(lambda: Delivery.objects.pending().first(), what="the failed one to be back")
    assert (statuses(events[0]), delivery_of(events[1])) == ({"packed": "succeeded"}, back)
    assert back.error.rstrip().endswith("Refused: not this one")
    assert back.attempts == 1
    assert finish_all(events) == ["succeeded"] * 3
    assert packed.seen == [0, 1, 2, 1]


def test_the_next_try_waits_for_its_backoff(declare: Callable[..., Packed]) -> None:
    packed = declare(max_retries=1, min_backoff=3_600_000, max_backoff=7_200_000)
    packed.actions[0] = refuse
    (event,) = publish_all(0)
    relay_all()
    with worker():
        back = wait_until(lambda: Delivery.objects.pending().first(), what="the failed one to be back")
    wait = back.available_at - delivery_of(event).dispatched_at
    assert timedelta(minutes=59) < wait < timedelta(hours=2, minutes=1)


def test_one_whose_retries_are_used_up_fails_with_its_own_error(packed: Packed) -> None:
    packed.actions["bad"] = refuse
    events = publish_all("good", "bad")
    assert finish_all(events) == ["succeeded", "failed"]
    assert packed.seen == ["good", "bad", "bad"]
    assert "Refused: not this one" in delivery_of(events[1]).error
    flush()
    stats = HandlerStats.objects.get(handler="packed")
    assert (stats.dispatched, stats.succeeded, stats.retried, stats.failed) == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "tries"),
    [
        ({"max_retries": 0}, 1),
        ({"max_retries": 3}, 4),
        ({"throws": Refused}, 1),
        ({"retry_when": lambda retries, error: retries < 2}, 3),
    ],
)
def test_the_options_of_dramatiq_s_retries_hold(
    declare: Callable[..., Packed], options: dict[str, Any], tries: int
) -> None:
    packed = declare(**options)
    packed.actions["bad"] = refuse
    assert finish_all(publish_all("bad", "good")) == ["failed", "succeeded"]
    assert packed.seen.count("bad") == tries


def test_a_predicate_that_raises_has_it_tried_again(declare: Callable[..., Packed]) -> None:
    packed = declare(retry_when=lambda retries, error: refuse())
    packed.actions["bad"] = refuse
    publish_all("bad")
    relay_all()
    with worker():
        back = wait_until(lambda: Delivery.objects.pending().first(), what="it to be back")
    assert back.available_at - back.dispatched_at > timedelta(seconds=14)


def test_one_that_is_skipped_is_discarded(packed: Packed) -> None:
    def skip() -> None:
        raise SkipMessage("nothing to do")

    packed.actions[0] = skip
    assert finish_all(publish_all(0, 1)) == ["discarded", "succeeded"]


def test_each_has_its_own_event_context_and_cause(packed: Packed) -> None:
    seen: list[Any] = []

    def look() -> None:
        event, run = current_event(), current_run.get()
        assert event is not None
        assert run is not None
        seen.append((event.payload, dict(event.context), run.deliveries))
        publish("caused.by_pack")

    packed.actions = {0: look, 1: look}
    events = []
    for number in range(2):
        with outbox.context(number=number):
            events += publish_all(number)
    assert finish_all(events) == ["succeeded"] * 2
    assert seen == [(n, {"number": n}, [delivery_of(events[n]).pk]) for n in range(2)]
    effects = Event.objects.filter(topic="caused.by_pack").order_by("id")
    assert [effect.headers["causation_id"] for effect in effects] == [str(event.id) for event in events]


def test_each_is_counted_and_timed(packed: Packed) -> None:
    packed.actions[1] = lambda: time.sleep(0.05)
    finish_all(publish_all(0, 1, 2))
    flush()
    stats = HandlerStats.objects.get(handler="packed")
    assert (stats.dispatched, stats.succeeded, sum(stats.histogram)) == (3, 3, 3)
    assert 0.05 <= stats.duration_max_s <= stats.duration_total_s
    assert stats.histogram[0] == 0 or stats.duration_total_s < 2 * stats.duration_max_s


def test_an_async_function_gets_one_event_at_a_time(declare: Callable[..., Packed]) -> None:
    seen: list[Any] = []

    @outbox.handler("later.*", pack=5, queue_name=QUEUE, name="packed")
    async def packed(event: outbox.ReceivedEvent) -> None:
        seen.append((event.payload, current_event() == event))

    events = [publish("later.on", n) for n in range(3)]
    assert finish_all(events) == ["succeeded"] * 3
    assert seen == [(n, True) for n in range(3)]


# ---------------------------------------------------------------- effects and success in one commit


def test_a_transactional_pack_commits_each_by_itself(declare: Callable[..., Packed]) -> None:
    packed = declare(transactional=True, max_retries=1)

    def effect(payload: Any) -> Callable[[], None]:
        return lambda: Effect.objects.create(handler="packed", key=payload) and None

    def fail_after_the_effect() -> None:
        effect("b")()
        del packed.actions["b"]
        refuse()

    packed.actions = {"a": effect("a"), "b": fail_after_the_effect, "c": effect("c")}
    events = publish_all("a", "b", "c")
    relay_all()
    with worker():
        finish(events[2])
        wait_until(Delivery.objects.pending().exists, what="the failed one to be back")
        assert sorted(Effect.objects.values_list("key", flat=True)) == ["a", "c"]
        packed.actions["b"] = effect("b")
    assert finish_all(events) == ["succeeded"] * 3
    assert sorted(Effect.objects.values_list("key", flat=True)) == ["a", "b", "c"]


def test_a_second_copy_of_a_transactional_pack_has_no_effect(declare: Callable[..., Packed]) -> None:
    packed = declare(transactional=True)
    events = publish_all(0, 1)
    relay_all()
    (message,) = list(dramatiq.get_broker().queues[QUEUE].queue)
    assert finish_all(events) == ["succeeded"] * 2
    dramatiq.get_broker().queues[QUEUE].put(message)
    with worker():
        wait_until(lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="the copy")
    assert packed.seen == [0, 1]


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("interrupt", [Shutdown, TimeLimitExceeded])
def test_an_interrupt_is_a_try_for_the_one_at_work_and_none_for_those_behind_it(
    packed: Packed, interrupt: type[BaseException]
) -> None:
    def be_interrupted() -> None:
        raise_thread_exception(threading.get_ident(), interrupt)
        for _ in range(1000):
            time.sleep(0.001)

    packed.actions[1] = be_interrupted
    events = publish_all(0, 1, 2, 3)
    relay_all()
    with worker():
        wait_until(lambda: Delivery.objects.pending().count() == 3, what="the rest to be given back")
    assert packed.seen == [0, 1]
    assert [statuses(event)["packed"] for event in events] == ["succeeded", *["pending"] * 3]
    assert [delivery_of(event).attempts for event in events] == [1, 1, 0, 0]
    assert interrupt.__name__ in delivery_of(events[1]).error
    assert [delivery_of(event).error for event in events[2:]] == ["", ""]
    del packed.actions[1]
    assert finish_all(events) == ["succeeded"] * 4


def test_a_worker_that_ends_begins_nothing_more_of_its_pack(packed: Packed) -> None:
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(20)

    packed.actions[0] = hold
    events = publish_all(0, 1, 2)
    relay_all()
    letting_go = threading.Thread(target=lambda: packs.ending.wait(20) and go_on.set())
    with worker():
        assert started.wait(20)
        letting_go.start()
    letting_go.join()
    flush()
    assert packed.seen == [0]
    assert [statuses(event)["packed"] for event in events] == ["succeeded", "pending", "pending"]
    assert [delivery_of(event).attempts for event in events] == [1, 0, 0]
    assert finish_all(events) == ["succeeded"] * 3


def test_what_a_connection_suffers_from_one_does_not_harm_the_next(packed: Packed) -> None:
    from django.db import connection

    def break_the_connection() -> None:
        del packed.actions[0]
        with connection.cursor() as cursor:
            connection.connection.close()
            cursor.execute("SELECT 1")

    packed.actions[0] = break_the_connection
    packed.actions[1] = lambda: Effect.objects.create(handler="packed")
    assert finish_all(publish_all(0, 1)) == ["succeeded"] * 2
    assert packed.seen == [0, 1, 0]


# ---------------------------------------------------------------- copies and crashes


def test_of_a_pack_that_was_sent_again_only_what_is_not_settled_runs(packed: Packed) -> None:
    events = publish_all(0, 1, 2)
    Delivery.objects.update(redeliveries=1)
    relay_all()
    Delivery.objects.filter(event=events[1]).update(status="succeeded")
    assert finish_all(events) == ["succeeded"] * 3
    assert packed.seen == [0, 2]


def test_a_pack_that_the_broker_gave_back_without_saying_so_runs_what_is_not_settled(packed: Packed) -> None:
    """As Redis does with what was at a worker whose host died."""
    events = publish_all(0, 1, 2)
    relay_all()
    Delivery.objects.filter(event__in=events[:2]).update(status="succeeded")
    assert finish_all(events) == ["succeeded"] * 3
    assert packed.seen == [2]


def test_a_pack_that_is_settled_already_is_dropped(packed: Packed) -> None:
    publish_all(0, 1)
    Delivery.objects.update(redeliveries=1)
    relay_all()
    Delivery.objects.update(status="succeeded")
    with worker():
        wait_until(lambda: dramatiq.get_broker().queues[QUEUE].unfinished_tasks == 0, what="the copy")
    assert packed.seen == []


@pytest.fixture
def journals(settings: Any, tmp_path: Path) -> Path:
    """Return the folder of the journals."""
    settings.OUTBOX = {"CRASH_DIR": tmp_path, "MAX_CRASHES": 2}
    return tmp_path


def die_of(folder: Path, event: Event) -> None:
    """Leave what a worker leaves that is killed while it runs a delivery."""
    journal = Journal(folder, _site())
    with journal.noting("default", [delivery_of(event).pk]):
        journal.forget()
    Crashes().look()


def test_the_journal_names_the_one_at_work(packed: Packed, journals: Path) -> None:
    noted: list[Any] = []

    def look() -> None:
        from outbox.crashes import crashes

        assert crashes._journal is not None
        copy = journals / "copy"
        copy.mkdir(exist_ok=True)
        (copy / crashes._journal.path.name).write_bytes(bytes(crashes._journal._memory))
        noted.extend(deliveries for one in left_behind(copy, _site()) for _alias, deliveries in one)

    packed.actions = {0: look, 1: look}
    events = publish_all(0, 1, 2)
    assert finish_all(events) == ["succeeded"] * 3
    assert noted == [[delivery_of(event).pk] for event in events[:2]]


def test_what_a_worker_died_of_often_enough_fails_and_the_rest_of_its_pack_runs(
    packed: Packed, journals: Path
) -> None:
    events = publish_all(0, 1, 2)
    relay_all()
    for _ in range(2):
        die_of(journals, events[1])
    assert finish_all(events) == ["succeeded", "failed", "succeeded"]
    assert packed.seen == [0, 2]


def test_what_a_worker_may_have_died_of_runs_last_once_the_others_are_confirmed(
    packed: Packed, journals: Path
) -> None:
    seen: list[Any] = []
    packed.actions[0] = lambda: seen.extend(Delivery.objects.values_list("status", flat=True).order_by("id"))
    events = publish_all(0, 1, 2)
    relay_all()
    die_of(journals, events[0])
    assert finish_all(events) == ["succeeded"] * 3
    assert packed.seen == [1, 2, 0]
    assert seen == ["dispatched", "succeeded", "succeeded"]


def test_a_suspect_waits_while_another_one_runs(packed: Packed, journals: Path) -> None:
    from outbox.crashes import crashes

    events = publish_all(0, 1)
    relay_all()
    die_of(journals, events[0])
    assert crashes.claim_solitude()
    try:
        with worker():
            assert finish(events[1]) == {"packed": "succeeded"}
            back = wait_until(lambda: Delivery.objects.pending().first(), what="the suspect to be back")
    finally:
        crashes.end_solitude()
    assert (back.error, back.attempts) == ("waits to run without other suspects", 0)
    assert packed.seen == [1]


def test_a_suspect_that_has_waited_for_a_copy_of_itself_does_not_run_again(
    packed: Packed, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.crashes import crashes

    events = publish_all(0, 1)
    relay_all()
    die_of(journals, events[0])
    claim = crashes.claim_solitude

    def claim_after_the_copy() -> bool:
        Delivery.objects.filter(event=events[0]).update(status="succeeded")
        return claim()

    monkeypatch.setattr(crashes, "claim_solitude", claim_after_the_copy)
    assert finish_all(events) == ["succeeded"] * 2
    assert packed.seen == [1]


# ---------------------------------------------------------------- together with other options


def test_a_packed_lane_goes_on_only_when_the_one_before_is_done(declare: Callable[..., Packed]) -> None:
    packed = declare(ordered=True, max_retries=3)
    packed.actions["a1"] = lambda: packed.actions.pop("a1") and refuse()
    events = [
        *publish_all("a1", "a2", "a3", key="a"),
        *publish_all("b1", "b2", "b3", key="b"),
    ]
    relay_all()
    assert [len(one["options"]["outbox"]["pack"]) for one in messages()] == [2]
    assert finish_all(events) == ["succeeded"] * 6
    for lane in "ab":
        order = [payload for payload in packed.seen if payload.startswith(lane)]
        assert order == sorted(order)
    assert packed.seen.count("a1") == 2


def test_a_packed_lane_goes_on_at_once_when_the_one_before_is_confirmed(
    declare: Callable[..., Packed],
) -> None:
    declare(ordered=True)
    first, second = publish_all("a1", "a2", key="a")
    relay_all()
    assert delivery_of(second).held == "lane"
    with worker():
        finish(first)
        wait_until(lambda: delivery_of(second).held == "", what="the next of the lane to be let go")


def test_a_failed_delivery_of_a_packed_lane_blocks_it(declare: Callable[..., Packed]) -> None:
    packed = declare(ordered=True, max_retries=0)
    packed.actions["a1"] = refuse
    events = [*publish_all("a1", "a2", key="a"), *publish_all("b1", "b2", key="b")]
    finish_all([events[0], *events[2:]])
    relay_all()
    assert [statuses(event)["packed"] for event in events] == ["failed", "pending", "succeeded", "succeeded"]


def test_what_is_paused_or_expired_is_left_out_of_the_pack(packed: Packed) -> None:
    late = publish("pack.it", "late", expires=timedelta(microseconds=1))
    event = publish("pack.it", "in time")
    assert finish_all([late, event]) == ["discarded", "succeeded"]
    PausedHandler.objects.pause("packed", "for the test")
    held = publish("pack.it", "held")
    relay_all()
    assert (statuses(held), packed.seen) == ({"packed": "pending"}, ["in time"])


def test_without_confirmations_each_travels_by_itself(packed: Packed, settings: Any) -> None:
    settings.OUTBOX = {"CONFIRM": False}
    publish_all(0, 1)
    relay_all()
    assert [sorted(one["options"]["outbox"]) for one in messages()] == [["database", "delivery", "v"]] * 2


def test_a_handler_that_is_packed_no_more_runs_the_packs_under_way(packed: Packed) -> None:
    events = publish_all(0, 1)
    relay_all()
    registry.remove("packed")
    outbox.handler("pack.*", name="packed", queue_name=QUEUE)(lambda event: packed(event))
    assert finish_all(events) == ["succeeded"] * 2
    assert packed.seen == [0, 1]


def test_a_handler_that_is_batched_no_more_gets_the_events_of_a_batch_one_by_one(
    declare: Callable[..., Packed],
) -> None:
    declare(pack=None, batch_size=2)
    events = publish_all(0, 1)
    relay_all()
    registry.remove("packed")
    packed = declare(pack=None)
    assert finish_all(events) == ["succeeded"] * 2
    assert packed.seen == [0, 1]


def test_a_handler_that_has_become_batched_gets_each_event_of_a_pack_in_a_list(packed: Packed) -> None:
    seen: list[Any] = []
    events = publish_all(0, 1)
    relay_all()
    registry.remove("packed")

    @outbox.handler("pack.*", name="packed", queue_name=QUEUE, batch_size=10)
    def batched(events: list[outbox.ReceivedEvent]) -> None:
        seen.append([event.payload for event in events])

    assert finish_all(events) == ["succeeded"] * 2
    assert seen == [[0], [1]]


def test_a_pack_that_is_too_new_is_given_back_whole(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    events = publish_all(0, 1)
    relay_all()
    monkeypatch.setattr("outbox.versions.NEWEST", 0)
    with worker():
        wait_until(lambda: Delivery.objects.pending().count() == 2, what="the pack to be given back")
    assert packed.seen == []
    assert {delivery_of(event).attempts for event in events} == {0}
    assert "upgrade it" in delivery_of(events[0]).error


def test_a_worker_that_does_not_know_the_handler_gives_all_back(packed: Packed) -> None:
    events = publish_all(0, 1)
    relay_all()
    actor = dramatiq.get_broker().actors.pop("packed")
    with worker():
        wait_until(lambda: Delivery.objects.pending().count() == 2, what="the pack to be given back")
    dramatiq.get_broker().actors["packed"] = actor
    assert {(delivery_of(event).attempts, packed.seen == []) for event in events} == {(0, True)}
    assert "does not know the handler 'packed'" in delivery_of(events[0]).error


def test_a_packed_receiver_discards_only_the_sends_whose_instance_is_gone() -> None:
    seen: list[str] = []

    @outbox.receiver(post_save, sender=Product, pack=10, queue_name=QUEUE, name="packed_receiver")
    def packed_receiver(sender: Any, instance: Product, **kwargs: Any) -> None:
        seen.append(instance.name)

    try:
        with transaction.atomic():
            for name in ("a", "b", "c"):
                Product.objects.create(name=name)
        Product.objects.filter(name="b").delete()
        relay_all()
        with worker():
            states = [finish(event)["packed_receiver"] for event in Event.objects.order_by("id")]
    finally:
        registry.remove("packed_receiver")
        unsubscribe("packed_receiver")
    assert states == ["succeeded", "discarded", "succeeded"]
    assert seen == ["a", "c"]
    assert "Product" in Delivery.objects.get(status="discarded").error


def test_deliver_runs_a_packed_handler_like_any_other(packed: Packed) -> None:
    events = publish_all(0, 1, 2)
    with fail_handler("packed"):
        delivered = deliver(raise_errors=False)
    assert (delivered.succeeded, delivered.failed) == (2, 1)
    assert sorted(statuses(event)["packed"] for event in events) == ["failed", "succeeded", "succeeded"]


def test_an_injected_failure_strikes_one_event_of_a_pack(packed: Packed) -> None:
    events = publish_all(0, 1, 2)
    with fail_handler("packed") as injected:
        assert finish_all(events) == ["succeeded"] * 3
    assert injected.count == 1
    assert packed.seen == [1, 2, 0]
