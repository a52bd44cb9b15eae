"""Every way of a message through Dramatiq's `WorkerThread.process_message`, and the outcome of each.

The middleware of a project may fail or skip a message, raise an error, or be interrupted, in any hook, in
front of the outbox's middleware or behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from django.db import transaction
from dramatiq.errors import RateLimitExceeded
from dramatiq.middleware import Middleware, MiddlewareError, Shutdown, SkipMessage

import outbox
from outbox.confirmations import confirmations
from outbox.models import Delivery, Event, HandlerStats
from outbox.registry import registry
from outbox.testing import deliver
from outbox.worker import middleware as worker_middleware
from outbox.worker.middleware import OutboxMiddleware
from tests.support.data_flow import finish_with_retries, flush, publish, relay_all, worker
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

with_commits = pytest.mark.django_db(transaction=True)

Hook = Callable[[Any], None]


def fail(message: Any) -> None:
    message.fail()


def skip(message: Any) -> None:
    raise SkipMessage("not now")


def fail_and_skip(message: Any) -> None:
    message.fail()
    raise SkipMessage("never")


def raise_an_error(message: Any) -> None:
    raise ValueError("of a hook")


def exceed_a_rate(message: Any) -> None:
    # Dramatiq logs any error of a before-hook but `MiddlewareError`, and goes on.
    raise RateLimitExceeded("too many")


def refuse(message: Any) -> None:
    raise MiddlewareError("not here")


def interrupt(message: Any) -> None:
    raise Shutdown


class Meddling(Middleware):
    """Calls a function once, in one hook."""

    def __init__(self, hook: str, action: Hook) -> None:
        def call(broker: Any, message: Any, **_: Any) -> None:
            if message.actor_name in ("way", "last_way") and not self.called:
                self.called = True
                action(message)

        self.called = False
        setattr(self, hook, call)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Declare a handler that is retried once, and one that is not retried."""

    @outbox.handler("way.retried", queue_name=QUEUE, name="way", max_retries=1, min_backoff=5, max_backoff=5)
    def way(event: Any) -> None:
        Effect.objects.create(handler="way", event_id=event.id, key=event.topic)

    @outbox.handler("way.once", queue_name=QUEUE, name="last_way", max_retries=0)
    def last_way(event: Any) -> None:
        way.fn(event)

    broker = dramatiq.get_broker()
    before = broker.middleware[:]
    broker.flush_all()
    yield
    broker.middleware[:] = before
    broker.flush_all()
    registry.remove("way")
    registry.remove("last_way")


def meddle(hook: str, action: Hook, *, in_front: bool = False) -> Meddling:
    """Add a middleware in front of the outbox's middleware, or behind all others."""
    meddling = Meddling(hook, action)
    dramatiq.get_broker().middleware.insert(0 if in_front else 99, meddling)
    return meddling


def run(topic: str) -> tuple[str, int, str]:
    """Deliver an event; return the state of its delivery, the runs of its handler and its error."""
    event = publish(topic)
    relay_all()
    with worker():
        finish_with_retries(event)
    flush()
    delivery = event.deliveries.get()
    return delivery.state, Effect.objects.filter(handler="way").count(), delivery.error


# The hook, the action, the final state without retries, and the runs until then.
BEFORE = [
    ("before_process_message", fail, "failed", 0),
    ("before_process_message", skip, "discarded", 0),
    ("before_process_message", fail_and_skip, "failed", 0),
    ("before_process_message", raise_an_error, "succeeded", 1),
    ("before_process_message", exceed_a_rate, "succeeded", 1),
    ("before_process_message", refuse, "failed", 0),
    ("before_process_message", interrupt, "failed", 0),
]
AFTER = [
    ("after_process_message", fail, "failed", 1),
    # Dramatiq only logs an error of an after-hook.
    ("after_process_message", skip, "succeeded", 1),
    ("after_process_message", raise_an_error, "succeeded", 1),
]


@with_commits
@pytest.mark.parametrize("in_front", [True, False], ids=["in front", "behind"])
@pytest.mark.parametrize(("hook", "action", "state", "runs"), BEFORE)
def test_the_outcome_follows_from_a_before_hook(
    hook: str, action: Hook, state: str, runs: int, in_front: bool
) -> None:
    meddling = meddle(hook, action, in_front=in_front)
    assert run("way.once")[:2] == (state, runs)
    assert meddling.called
    succeeded = HandlerStats.objects.filter(handler="last_way", succeeded__gt=0).exists()
    assert succeeded == (state == "succeeded")


@with_commits
@pytest.mark.parametrize(("hook", "action", "state", "runs"), AFTER)
def test_the_outcome_follows_from_an_after_hook(hook: str, action: Hook, state: str, runs: int) -> None:
    meddling = meddle(hook, action)
    assert run("way.once")[:2] == (state, runs)
    assert meddling.called


@with_commits
@pytest.mark.parametrize("action", [skip, raise_an_error])
def test_an_error_of_the_hook_after_a_skip_changes_nothing(action: Hook) -> None:
    meddle("before_process_message", skip)
    meddle("after_skip_message", action)
    assert run("way.once")[:2] == ("discarded", 0)


@with_commits
@pytest.mark.parametrize("in_front", [True, False], ids=["in front", "behind"])
@pytest.mark.parametrize(
    ("hook", "runs"), [("before_process_message", 1), ("after_process_message", 2)], ids=["before", "after"]
)
def test_an_interrupted_hook_is_followed_by_a_retry(hook: str, runs: int, in_front: bool) -> None:
    if in_front and hook == "after_process_message":
        # The outcome is reported already, so the delivery stays succeeded.
        runs = 1
    meddling = meddle(hook, interrupt, in_front=in_front)
    assert run("way.retried")[0] == "succeeded"
    assert meddling.called
    wait_until(lambda: Effect.objects.filter(handler="way").count() >= runs)


def moments(monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str) -> list[str]:
    """Raise an error once at a moment of the outbox's own hooks; return a list that then names the moment."""
    targets: dict[str, tuple[Any, str]] = {
        "before the run is read": (OutboxMiddleware, "before_process_message"),
        "after the run is read": (worker_middleware, "RunContext"),
        "when the context is entered": (worker_middleware.RunContext, "__enter__"),
        "before the outcome is reported": (confirmations, "add"),
    }
    owner, name = targets[moment]
    original, raised = getattr(owner, name), list[str]()

    def raise_once(*args: Any, **kwargs: Any) -> Any:
        if not raised:
            raised.append(moment)
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, raise_once)
    return raised


@with_commits
@pytest.mark.parametrize(
    "moment",
    [
        "before the run is read",
        "after the run is read",
        "when the context is entered",
        "before the outcome is reported",
    ],
)
@pytest.mark.parametrize(("topic", "state"), [("way.once", "failed"), ("way.retried", "succeeded")])
def test_an_interrupt_in_the_hooks_of_the_outbox_has_the_outcome_of_dramatiq(
    monkeypatch: pytest.MonkeyPatch, moment: str, topic: str, state: str
) -> None:
    raised = moments(monkeypatch, Shutdown(), moment)
    assert run(topic)[0] == state
    assert raised == [moment]


@with_commits
@pytest.mark.parametrize("moment", ["after the run is read", "when the context is entered"])
def test_an_error_in_the_before_hook_of_the_outbox_returns_the_delivery_unstarted(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    moments(monkeypatch, ValueError("a defect"), moment)
    event = publish("way.once")
    relay_all()
    with worker():
        delivery = wait_until(
            lambda: Delivery.objects.filter(event=event, state="pending").first(),
            what="its return",
        )
    assert "could not be prepared: ValueError: a defect" in delivery.error
    assert delivery.attempts == 0
    assert not Effect.objects.filter(handler="way").exists()


@with_commits
def test_the_error_names_the_middleware_as_the_cause() -> None:
    meddle("before_process_message", fail)
    assert run("way.once")[2] == "a middleware failed the message before its run"


@pytest.mark.django_db
@pytest.mark.parametrize(("hook", "action", "state", "runs"), [*BEFORE[:6], *AFTER])
def test_deliver_reports_the_same_outcome(hook: str, action: Hook, state: str, runs: int) -> None:
    meddle(hook, action)
    with transaction.atomic():
        event: Event = outbox.publish("way.once")
    delivered = deliver(raise_errors=False)
    assert event.deliveries.get().state == state
    assert getattr(delivered, state) == 1
    assert Effect.objects.filter(handler="way").count() == runs


def test_the_table_names_all_hooks_of_a_message() -> None:
    """A new Dramatiq may add a hook, which then needs a row above."""
    hooks = {name for name in vars(Middleware) if name.endswith(("_process_message", "_skip_message"))}
    assert hooks == {"before_process_message", "after_process_message", "after_skip_message"}
