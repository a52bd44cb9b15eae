"""Deliveries that a middleware puts off: it enqueues the message again, with a delay, and skips the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Now
from django_dramatiq.middleware import DbConnectionsMiddleware
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import StubBackend

import outbox
from outbox.models import Delivery, Event, HandlerStats
from outbox.registry import registry
from outbox.testing import deliver
from outbox.worker.retries import record_retries
from tests.support.brokers import Brokers
from tests.support.data_flow import finish, flush, publish, relay_all, worker
from tests.support.names import unique_name
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

with_commits = pytest.mark.django_db(transaction=True)

DELAY_MS = 600_000

Enqueue = Callable[[Any, Any], None]


def by_argument(broker: Any, message: Any) -> None:
    broker.enqueue(message, delay=DELAY_MS)


def by_default_broker(broker: Any, message: Any) -> None:
    dramatiq.get_broker().enqueue(message, delay=DELAY_MS)


def by_copy(broker: Any, message: Any) -> None:
    broker.enqueue(message.copy(options={"throttled": 1}), delay=DELAY_MS)


class Throttle(Middleware):
    """Puts the first runs off."""

    def __init__(self, enqueue: Enqueue = by_argument, *, times: int = 1, skips: bool = True) -> None:
        self._enqueue = enqueue
        self._left = times
        self.skips = skips
        self.options: list[dict[str, Any]] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        """Put the message off, or note its options."""
        if not message.actor_name.startswith("throttled"):
            return
        if not self._left:
            self.options.append(message.options)
            return
        self._left -= 1
        self._enqueue(broker, message)
        if self.skips:
            raise SkipMessage("too many")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Declare a plain, a transactional and a batch handler."""

    @outbox.handler("throttle.plain", queue_name=QUEUE, name="throttled", max_retries=0)
    def throttled(event: Any) -> None:
        Effect.objects.create(handler="throttled", event_id=event.id, key=event.topic)

    @outbox.handler("throttle.money", queue_name=QUEUE, name="throttled_money", transactional=True)
    def throttled_money(event: Any) -> None:
        throttled.fn(event)

    @outbox.handler("throttle.batch", queue_name=QUEUE, name="throttled_batch", batch_size=2, batch_wait=3600)
    def throttled_batch(events: list[Any]) -> None:
        Effect.objects.create(handler="throttled", event_id=events[0].id, detail={"size": len(events)})

    broker = dramatiq.get_broker()
    before = broker.middleware[:]
    broker.flush_all()
    yield
    broker.middleware[:] = before
    broker.flush_all()
    for name in ("throttled", "throttled_money", "throttled_batch"):
        registry.remove(name)


def throttle(throttle: Throttle, *, in_front: bool = False) -> Throttle:
    dramatiq.get_broker().middleware.insert(0 if in_front else 99, throttle)
    return throttle


def wait_until_put_off(*events: Event) -> list[Delivery]:
    """Dispatch, and wait until each delivery is pending again."""
    relay_all()

    def put_off() -> list[Delivery] | None:
        flush()
        found = list(Delivery.objects.filter(event__in=events, state="pending").exclude(error=""))
        return found if len(found) == len(events) else None

    return wait_until(put_off, what="the deliveries to be put off")


def run_again(*events: Event) -> None:
    """Make put off deliveries due, and run them."""
    Delivery.objects.filter(event__in=events).update(available_at=Now())
    relay_all()
    for event in events:
        assert set(finish(event).values()) == {"succeeded"}


def runs() -> int:
    return Effect.objects.filter(handler="throttled").count()


def is_due_in(delay: timedelta, *deliveries: Delivery) -> bool:
    margin = timedelta(minutes=1)
    due = Delivery.objects.filter(pk__in=[one.pk for one in deliveries])
    earliest, latest = Now() + delay - margin, Now() + delay + margin
    return due.filter(available_at__gt=earliest, available_at__lt=latest).count() == len(deliveries)


@with_commits
@pytest.mark.parametrize("in_front", [True, False], ids=["in front", "behind"])
@pytest.mark.parametrize("enqueue", [by_argument, by_default_broker, by_copy])
@pytest.mark.parametrize("topic", ["throttle.plain", "throttle.money"])
def test_a_delivery_that_a_middleware_enqueues_and_skips_is_put_off(
    enqueue: Enqueue, topic: str, in_front: bool
) -> None:
    added = throttle(Throttle(enqueue), in_front=in_front)
    event = publish(topic)
    with worker():
        (delivery,) = wait_until_put_off(event)
        assert is_due_in(timedelta(milliseconds=DELAY_MS), delivery)
        assert (delivery.attempts, runs()) == (0, 0)
        assert delivery.error == "a middleware put the delivery off for 0:10:00"
        run_again(event)
    assert (event.deliveries.get().attempts, runs()) == (1, 1)
    failures = HandlerStats.objects.filter(handler__startswith="throttled").aggregate(
        all=Sum("failed") + Sum("retried")
    )
    assert not failures["all"]
    (options,) = added.options
    assert options.get("throttled") == (1 if enqueue is by_copy else None)


@with_commits
@pytest.mark.parametrize("by_other_reference", [True, False])
def test_a_delivery_is_put_off_on_each_broker(brokers: Brokers, by_other_reference: bool) -> None:
    made = brokers.make(middleware=[DbConnectionsMiddleware()])

    def enqueue(broker: Any, message: Any) -> None:
        (made if by_other_reference else broker).enqueue(message, delay=DELAY_MS)

    made.add_middleware(Throttle(enqueue))
    queue = unique_name()
    registry.remove("throttled")

    @outbox.handler("throttle.plain", queue_name=queue, name="throttled", broker=made)
    def throttled(event: Any) -> None:
        Effect.objects.create(handler="throttled", event_id=event.id)

    event = publish("throttle.plain")
    with worker(made):
        (delivery,) = wait_until_put_off(event)
        assert is_due_in(timedelta(milliseconds=DELAY_MS), delivery)
        assert brokers.take(made, f"{queue}.DQ") == []
        run_again(event)
    assert runs() == 1


@with_commits
@pytest.mark.parametrize("in_front", [True, False], ids=["in front", "behind"])
def test_a_delivery_may_be_put_off_many_times_by_one_thread(in_front: bool) -> None:
    throttle(Throttle(times=3), in_front=in_front)
    event = publish("throttle.plain")
    with worker(queues={QUEUE}) as working:
        for extra in working.workers[1:]:
            extra.stop()
            extra.join()
        for _ in range(3):
            wait_until_put_off(event)
            event.deliveries.update(available_at=Now(), error="")
        run_again(event)
    assert runs() == 1


@with_commits
def test_a_batch_is_put_off_as_a_batch() -> None:
    throttle(Throttle())
    events = [publish("throttle.batch") for _ in range(2)]
    with worker():
        deliveries = wait_until_put_off(*events)
        assert is_due_in(timedelta(milliseconds=DELAY_MS, hours=1), *deliveries)
        assert {one.waits_for for one in deliveries} == {"batch"}
        run_again(*events)
    assert list(Effect.objects.filter(handler="throttled").values_list("detail", flat=True)) == [{"size": 2}]


@with_commits
def test_a_message_that_is_enqueued_and_not_skipped_runs_once() -> None:
    throttle(Throttle(skips=False))
    event = publish("throttle.plain")
    relay_all()
    with worker():
        assert set(finish(event).values()) == {"succeeded"}
    assert runs() == 1


@with_commits
def test_a_failed_message_stays_failed_if_a_middleware_enqueues_it_too() -> None:
    def fail_too(broker: Any, message: Any) -> None:
        message.fail()
        by_argument(broker, message)

    throttle(Throttle(fail_too))
    event = publish("throttle.plain")
    relay_all()
    with worker():
        assert set(finish(event).values()) == {"failed"}


@with_commits
@pytest.mark.parametrize("enqueue", [by_argument, by_default_broker])
def test_a_middleware_of_the_project_may_retry_in_place_of_dramatiqs(enqueue: Enqueue) -> None:
    class Retrying(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
        ) -> None:
            if exception is not None:
                message.failed = False
                enqueue(broker, message)

    broker = dramatiq.get_broker()
    # In front of `Retries`, so that its after-hook decides later.
    broker.middleware.insert(1, Retrying())
    actor = registry.get("throttled").actor
    function, actor.fn = actor.fn, lambda event: 1 / 0
    event = publish("throttle.plain")
    with worker():
        (delivery,) = wait_until_put_off(event)
        assert is_due_in(timedelta(milliseconds=DELAY_MS), delivery)
        assert "ZeroDivisionError" in delivery.error
        actor.fn = function
        run_again(event)
    assert runs() == 1


def test_a_worker_replaces_a_middleware_without_a_visible_difference() -> None:
    broker = dramatiq.get_broker()
    added = throttle(Throttle())
    record_retries(broker)
    (replaced,) = [one for one in broker.middleware if isinstance(one, Throttle)]
    assert replaced is not added
    replaced.skips = False
    assert (added.skips, repr(replaced)) == (False, repr(added))
    before = broker.middleware[:]
    record_retries(broker)
    assert broker.middleware == before


@with_commits
def test_a_rate_limiter_in_a_middleware_limits_the_runs_and_loses_none() -> None:
    """The limiter of Dramatiq's documentation, with a mutex that is taken at first."""
    mutex = ConcurrentRateLimiter(StubBackend(), "put-off", limit=1)

    class Mutex(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.actor_name == "throttled":
                with mutex.acquire(raise_on_failure=False) as acquired:
                    if not acquired:
                        broker.enqueue(message, delay=DELAY_MS)
                        raise SkipMessage("taken")

    dramatiq.get_broker().middleware.append(Mutex())
    events = [publish("throttle.plain") for _ in range(3)]
    with worker():
        with mutex.acquire():
            wait_until_put_off(*events)
        run_again(events[0])
    assert runs() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("enqueue", [by_argument, by_copy])
def test_deliver_puts_off_as_a_worker(enqueue: Enqueue) -> None:
    throttle(Throttle(enqueue))
    with transaction.atomic():
        event = outbox.publish("throttle.plain")
    deliver()
    delivery = event.deliveries.get()
    assert (delivery.state, delivery.attempts, runs()) == ("pending", 0, 0)
    assert is_due_in(timedelta(milliseconds=DELAY_MS), delivery)
    assert deliver(ahead=timedelta(milliseconds=2 * DELAY_MS)).succeeded == 1


@pytest.mark.django_db
def test_deliver_refuses_another_message_of_a_middleware() -> None:
    def enqueue_another(broker: Any, message: Any) -> None:
        broker.enqueue(message.copy().copy(options={})._replace(message_id="another"))

    throttle(Throttle(enqueue_another))
    with transaction.atomic():
        outbox.publish("throttle.plain")
    # Dramatiq logs the error of a before-hook, and runs the message.
    assert deliver().succeeded == 1
