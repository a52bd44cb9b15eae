"""Retries of handlers: Dramatiq's `Retries` decides, and the table keeps the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now
from django_dramatiq.middleware import DbConnectionsMiddleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Middleware, Retries, Shutdown, TimeLimitExceeded
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend
from dramatiq.threading import raise_thread_exception

import outbox
from outbox.models import Delivery, Event
from outbox.registry import registry
from outbox.worker.retries import RecordingMiddleware
from tests.support.data_flow import flush, publish, relay_all, states_of
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

QUEUE = "retries"
TOLERANCE_MS = 10_000


class Refused(Exception):
    """The error of the handlers."""


class ImpatientBroker(StubBroker):
    """A broker in memory that notes the delay of a message, and delivers the message at once."""

    def __init__(self, *middleware: Middleware) -> None:
        super().__init__(middleware=[*middleware, CurrentMessage(), DbConnectionsMiddleware()])
        self.delays_ms: list[int] = []

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Note the delay."""
        if delay is not None:
            self.delays_ms.append(delay)
        return super().enqueue(message)

    @property
    def is_empty(self) -> bool:
        """Return whether no message waits, also not for its due time."""
        return all(queue.empty() for queue in self.queues.values())


@contextmanager
def worker_of(broker: dramatiq.Broker) -> Iterator[None]:
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    try:
        yield
    finally:
        worker.stop()


# ---------------------------------------------------------------- the contract with Dramatiq


@dataclass
class Observed:
    """The runs of a function, and their result."""

    state: str = ""
    options: list[dict[str, Any]] = field(default_factory=list)
    delays_ms: list[int] = field(default_factory=list)
    timestamps: set[int] = field(default_factory=set)
    exhausted: list[Any] = field(default_factory=list)

    def note_run(self) -> None:
        """Note the options that the run sees."""
        message: Any = CurrentMessage.get_current_message()
        self.timestamps.add(message.message_timestamp)
        options = {name: value for name, value in message.options.items() if name in ("retries", "memory")}
        if "traceback" in message.options:
            options["traceback"] = message.options["traceback"].splitlines()[-1]
        self.options.append(options)


@dataclass
class Case:
    """Options of an actor, its middleware, and the error of each run, by its number."""

    fail: Callable[[int], None]
    options: dict[str, Any] = field(default_factory=dict)
    retries: Callable[[], Retries] = Retries
    runs: int = 1
    state: str = "failed"

    def function(self, observed: Observed) -> Callable[..., None]:
        """Return the function of the actor."""

        def function(*args: Any) -> None:
            observed.note_run()
            self.fail(len(observed.options))

        return function


def refuse(run: int) -> None:
    raise Refused("no")


def refuse_once(run: int) -> None:
    if run == 1:
        raise Refused("not the first time")


def ask_for_a_retry(run: int) -> None:
    if run == 1:
        raise dramatiq.Retry("later", delay=700_000)


def interrupt_once_with(interrupt: type[BaseException]) -> Callable[[int], None]:
    def fail(run: int) -> None:
        if run == 1:
            raise_thread_exception(threading.get_ident(), interrupt)
            while True:
                time.sleep(0.001)

    return fail


class WithMemory(Retries):
    """Counts in an option of its own, and has another backoff."""

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        memory = message.options.get("memory", [])
        if exception is None:
            return
        if len(memory) == 2:
            message.fail()
            return
        message.options["memory"] = [*memory, "é\0"]
        broker.enqueue(message, delay=(len(memory) + 1) * 300_000)


# Long backoffs, which differ by more than the tolerance.
LONG = {"min_backoff": 100_000, "max_backoff": 10_000_000}

CASES = {
    "max_retries": Case(refuse, {"max_retries": 2, **LONG}, runs=3),
    "max_retries of the middleware": Case(refuse, LONG, lambda: Retries(max_retries=1), runs=2),
    "no retries": Case(refuse, {"max_retries": 0}),
    "recovery": Case(refuse_once, LONG, runs=2, state="succeeded"),
    "min_backoff": Case(refuse, {"max_retries": 1, "min_backoff": 500_000}, runs=2),
    "max_backoff": Case(refuse, {"max_retries": 3, **LONG, "max_backoff": 150_000}, runs=4),
    "retry_when": Case(refuse, {"retry_when": lambda retries, error: retries < 2, **LONG}, runs=3),
    "throws": Case(refuse, {"throws": Refused}),
    "Retry": Case(ask_for_a_retry, {}, runs=2, state="succeeded"),
    "on_retry_exhausted": Case(refuse, {"max_retries": 1, "on_retry_exhausted": "exhausted", **LONG}, runs=2),
    "shutdown": Case(interrupt_once_with(Shutdown), LONG, runs=2, state="succeeded"),
    "time limit": Case(interrupt_once_with(TimeLimitExceeded), LONG, runs=2, state="succeeded"),
    "subclass": Case(refuse, {}, WithMemory, runs=3),
}


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq.common.uniform", lambda low, high: high)


def declare_exhausted(broker: dramatiq.Broker, observed: Observed) -> None:
    def exhausted(message: dict[str, Any], numbers: dict[str, Any]) -> None:
        observed.exhausted.append((message["options"]["retries"], numbers))

    dramatiq.actor(exhausted, broker=broker, actor_name="exhausted", queue_name=QUEUE)


def run_actor(case: Case, broker: ImpatientBroker) -> Observed:
    """Run a plain actor until it ends."""
    observed = Observed()
    declare_exhausted(broker, observed)
    actor = dramatiq.actor(
        case.function(observed), broker=broker, actor_name="plain", queue_name=QUEUE, **case.options
    )
    actor.send()
    with worker_of(broker):
        broker.join(QUEUE, timeout=20_000, fail_fast=False)
    observed.delays_ms = broker.delays_ms
    observed.state = "failed" if broker.dead_letters else "succeeded"
    return observed


@contextmanager
def handler_on(broker: StubBroker, function: Callable[..., Any], **options: Any) -> Iterator[None]:
    outbox.handler("retry.*", name="retried", queue_name=QUEUE, broker=broker, **options)(function)
    try:
        yield
    finally:
        registry.remove("retried")


def run_handler(case: Case, broker: ImpatientBroker) -> Observed:
    """Run a handler until it ends; make each retry due at once."""
    observed = Observed()
    declare_exhausted(broker, observed)
    with handler_on(broker, case.function(observed), **case.options):
        event = publish("retry.it")
        with worker_of(broker):
            while dispatch_and_wait(event) == "pending":
                observed.delays_ms.append(due_in_ms(event))
                event.deliveries.update(available_at=Now())
            broker.join(QUEUE, timeout=20_000, fail_fast=False)
    delivery = event.deliveries.get()
    assert delivery.attempts == len(observed.options)
    assert broker.delays_ms == []
    assert broker.dead_letters == []
    observed.state = delivery.state
    return observed


def dispatch_and_wait(event: Event) -> str:
    """Dispatch the delivery, wait for its outcome, and return its state."""
    relay_all()

    def outcome() -> str | None:
        flush()
        (state,) = states_of(event).values()
        return None if state == "dispatched" else state

    return wait_until(outcome, what="the outcome of the run")


def due_in_ms(event: Event) -> int:
    left = ExpressionWrapper(F("available_at") - Now(), output_field=DurationField())
    (due_in,) = event.deliveries.annotate(left=left).values_list("left", flat=True)
    return due_in // timedelta(milliseconds=1)


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_handler_is_retried_as_dramatiq_retries_an_actor(case: Case) -> None:
    expected = run_actor(case, ImpatientBroker(case.retries()))
    found = run_handler(case, ImpatientBroker(case.retries()))
    assert (len(expected.options), expected.state) == (case.runs, case.state)
    # PostgreSQL stores no NUL.
    assert str(found.options) == str(expected.options).replace("\\x00", "\\\\0")
    assert len(found.delays_ms) == len(expected.delays_ms)
    assert all(
        wanted - TOLERANCE_MS < delay <= wanted
        for delay, wanted in zip(found.delays_ms, expected.delays_ms, strict=True)
    )
    assert (found.state, found.exhausted) == (expected.state, expected.exhausted)
    # The age of a message counts from its first dispatch.
    assert (len(found.timestamps), len(expected.timestamps)) == (1, 1)


@pytest.mark.usefixtures("no_jitter")
def test_an_actor_without_the_outbox_is_retried_by_dramatiq() -> None:
    case = CASES["max_retries"]
    expected = run_actor(case, ImpatientBroker(Retries()))
    broker = ImpatientBroker(Retries())
    with handler_on(broker, lambda event: None):
        found = run_actor(case, broker)
    assert any(isinstance(one, RecordingMiddleware) for one in broker.middleware)
    assert (found.options, found.state) == (expected.options, expected.state)
    assert found.delays_ms == expected.delays_ms == [200_000, 400_000]


# ---------------------------------------------------------------- the row of a retry


@pytest.fixture
def broker() -> ImpatientBroker:
    return ImpatientBroker(Retries(max_retries=3, min_backoff=600_000, max_backoff=600_000))


def test_a_retry_is_a_pending_delivery_and_no_message(broker: ImpatientBroker) -> None:
    with handler_on(broker, refuse), worker_of(broker):
        event = publish("retry.it")
        assert dispatch_and_wait(event) == "pending"
        broker.join(QUEUE, timeout=20_000, fail_fast=False)
    delivery = event.deliveries.get()
    assert broker.is_empty
    assert (delivery.attempts, delivery.waits_for, delivery.confirm_by) == (1, "", None)
    assert "Refused: no" in delivery.error
    assert delivery.message_options["retries"] == 1
    assert "Refused: no" in delivery.message_options["traceback"]
    assert 300_000 - TOLERANCE_MS < due_in_ms(event) <= 600_000


def test_an_operators_retry_starts_without_the_retries_before(broker: ImpatientBroker) -> None:
    seen: list[int] = []

    def handle(event: Any) -> None:
        message: Any = CurrentMessage.get_current_message()
        seen.append(message.options.get("retries", 0))
        raise Refused

    with handler_on(broker, handle, max_retries=1), worker_of(broker):
        event = publish("retry.it")
        for state in ("pending", "failed"):
            assert dispatch_and_wait(event) == state
            event.deliveries.update(available_at=Now())
        assert Delivery.objects.retry() == 1
        assert dispatch_and_wait(event) == "pending"
    assert seen == [0, 1, 0]


def test_a_redelivery_keeps_the_retries_before(broker: ImpatientBroker) -> None:
    with handler_on(broker, refuse):
        event = publish("retry.it")
        with worker_of(broker):
            assert dispatch_and_wait(event) == "pending"
        event.deliveries.update(available_at=Now())
        relay_all()
        broker.flush_all()
        event.deliveries.update(confirm_by=event.created_at)
        Delivery.objects.redeliver_overdue(limit=10, max_redeliveries=5)
        relay_all()
        (data,) = list(broker.queues[QUEUE].queue)
    options = dramatiq.Message.decode(data).options
    assert (options["retries"], options["outbox"]["earlier_messages"]) == (1, 1)


def test_an_ordering_key_stays_blocked_while_its_first_delivery_waits_for_a_retry(
    broker: ImpatientBroker,
) -> None:
    seen: list[Any] = []

    def handle(event: outbox.ReceivedEvent) -> None:
        seen.append(event.payload)
        if len(seen) == 1:
            raise Refused

    with handler_on(broker, handle, ordered=True), worker_of(broker):
        first, second = publish("retry.it", 1, key="a"), publish("retry.it", 2, key="a")
        assert dispatch_and_wait(first) == "pending"
        relay_all()
        assert second.deliveries.values_list("state", "waits_for").get() == ("pending", "key")
        first.deliveries.update(available_at=Now())
        assert dispatch_and_wait(first) == "succeeded"
        assert dispatch_and_wait(second) == "succeeded"
    assert seen == [1, 1, 2]


def test_a_failed_batch_waits_for_its_retry_as_a_batch(broker: ImpatientBroker) -> None:
    hour_ms = 3_600_000
    with handler_on(broker, refuse, batch_size=2, batch_wait=timedelta(hours=1)), worker_of(broker):
        events = [publish("retry.it", n) for n in range(2)]
        assert dispatch_and_wait(events[0]) == "pending"
        relay_all()
    assert set(Delivery.objects.values_list("state", "waits_for", "attempts")) == {("pending", "batch", 1)}
    # A delivery joins a batch within the wait for the batch before its due time.
    for event in events:
        assert 300_000 - TOLERANCE_MS < due_in_ms(event) - hour_ms <= 600_000


def test_a_batch_of_new_and_retried_deliveries_that_fails_runs_one_by_one(broker: ImpatientBroker) -> None:
    runs: list[list[Any]] = []

    def handle(events: list[outbox.ReceivedEvent]) -> None:
        runs.append([event.payload for event in events])
        if "bad" in runs[-1]:
            raise Refused

    options = {"batch_size": 2, "batch_wait": timedelta(hours=1), "max_retries": 1}
    with handler_on(broker, handle, **options), worker_of(broker):
        bad = publish("retry.it", "bad")
        bad.deliveries.update(available_at=Now())
        assert dispatch_and_wait(bad) == "pending"
        bad.deliveries.update(available_at=Now())
        good = publish("retry.it", "good")
        assert dispatch_and_wait(bad) == "pending"
        assert dispatch_and_wait(good) == "succeeded"
        for state in ("pending", "failed"):
            assert dispatch_and_wait(bad) == state
            bad.deliveries.update(available_at=Now())
    assert (runs[:2], sorted(runs[2:])) == ([["bad"], ["bad", "good"]], [["bad"], ["bad"], ["good"]])


# ---------------------------------------------------------------- failures


class Hooks(Middleware):
    """Notes the hooks of acknowledged and rejected messages."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_nack(self, broker: Any, message: Any) -> None:
        assert message.failed
        self.seen.append("before_nack")

    def after_nack(self, broker: Any, message: Any) -> None:
        self.seen.append("after_nack")

    def after_ack(self, broker: Any, message: Any) -> None:
        self.seen.append("after_ack")


def test_a_failed_delivery_leaves_no_dead_letter_and_runs_the_hooks_of_a_rejection() -> None:
    hooks, backend = Hooks(), StubBackend()
    broker = ImpatientBroker(hooks, Results(backend=backend, store_results=True), Retries(max_retries=0))
    with handler_on(broker, refuse):
        event = publish("retry.it")
        relay_all()
        (data,) = list(broker.queues[QUEUE].queue)
        with worker_of(broker):
            assert dispatch_and_wait(event) == "failed"
            broker.join(QUEUE, timeout=20_000, fail_fast=False)
    with pytest.raises(ResultFailure, match="Refused"):
        backend.get_result(dramatiq.Message.decode(data))
    assert broker.dead_letters == []
    assert hooks.seen == ["before_nack", "after_nack", "after_ack"]


class Failing(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        message.fail()
        raise dramatiq.middleware.SkipMessage("too old")


def test_a_delivery_that_a_middleware_fails_leaves_no_dead_letter() -> None:
    broker = ImpatientBroker(Failing())
    with handler_on(broker, refuse), worker_of(broker):
        event = publish("retry.it")
        assert dispatch_and_wait(event) == "failed"
        broker.join(QUEUE, timeout=20_000, fail_fast=False)
    assert broker.dead_letters == []


def test_without_the_retries_middleware_a_delivery_fails_at_its_first_error() -> None:
    broker = ImpatientBroker()
    with handler_on(broker, refuse), worker_of(broker):
        assert dispatch_and_wait(publish("retry.it")) == "failed"


def test_a_second_worker_of_a_broker_changes_the_middleware_no_further(broker: ImpatientBroker) -> None:
    for _ in range(2):
        with handler_on(broker, refuse), worker_of(broker):
            assert dispatch_and_wait(publish("retry.it")) == "pending"
    recording = [one for one in broker.middleware if isinstance(one, RecordingMiddleware)]
    assert (len(recording), recording[0].max_retries) == (1, 3)
