"""Handlers that are called as plain functions within a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from django.db import transaction

import outbox
from outbox.errors import RegistrationError
from outbox.registry import registry
from outbox.testing import deliver, fail_handler
from tests.support.data_flow import states_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    """Declare handlers and an actor that call themselves, and return their arguments."""
    seen: list[Any] = []

    @outbox.handler("plain.event", name="plain_event")
    def plain_event(event: Any) -> None:
        payload = getattr(event, "payload", event)
        seen.append(payload)
        if payload:
            plain_event(payload - 1)

    @outbox.handler("plain.batch", name="plain_batch", batch_size=2, batch_wait=0)
    def plain_batch(events: list[Any]) -> None:
        seen.append(len(events))
        if events:
            plain_batch(events[1:])

    @outbox.handler("plain.outer", name="plain_outer")
    def plain_outer(event: Any) -> None:
        plain_event(event.payload)

    @dramatiq.actor(actor_class=outbox.TransactionalActor, actor_name="plain_actor")
    def plain_actor(number: int) -> None:
        seen.append(number)
        if number:
            plain_actor(number - 1)

    yield seen
    for name in ("plain_event", "plain_batch", "plain_outer", "plain_actor"):
        registry.remove(name)


def publish(topic: str, payload: Any) -> outbox.Event:
    with transaction.atomic():
        return outbox.publish(topic, payload)


def test_a_handler_that_calls_itself_gets_the_arguments_of_the_call(seen: list[Any]) -> None:
    publish("plain.event", 2)
    assert deliver().succeeded == 1
    assert seen == [2, 1, 0]


def test_a_batch_handler_that_calls_itself_gets_the_arguments_of_the_call(seen: list[Any]) -> None:
    for _ in range(2):
        publish("plain.batch", None)
    assert deliver().succeeded == 2
    assert seen == [2, 1, 0]


def test_an_actor_that_calls_itself_gets_the_arguments_of_the_call(seen: list[Any]) -> None:
    with transaction.atomic():
        registry.get("plain_actor").actor.send(2)
    assert deliver().succeeded == 1
    assert seen == [2, 1, 0]


def test_a_handler_that_another_handler_calls_gets_the_arguments_of_the_call(seen: list[Any]) -> None:
    publish("plain.outer", 1)
    assert deliver().succeeded == 1
    assert seen == [1, 0]


def test_an_injected_failure_is_kept_for_the_next_run(seen: list[Any]) -> None:
    publish("plain.outer", 0)
    with fail_handler("plain_event") as injected:
        assert deliver().succeeded == 1
        assert injected.count == 0


@pytest.mark.parametrize("kind", ["coroutine", "generator", "async generator"])
def test_a_function_whose_result_nothing_runs_fails(kind: str) -> None:
    ran = []

    async def body() -> None:
        ran.append(1)

    def steps() -> Iterator[None]:
        ran.append(1)
        yield

    async def async_steps() -> Any:
        ran.append(1)
        yield

    # As a decorator that hides that the function is async.
    make = {"coroutine": body, "generator": steps, "async generator": async_steps}[kind]

    @outbox.handler("unrun.it", name="unrun")
    def unrun(event: Any) -> Any:
        return make()

    try:
        event = publish("unrun.it", None)
        with pytest.raises(RegistrationError, match=f"handler 'unrun' returned .*{kind}, which nothing runs"):
            deliver()
        assert states_of(event) == {"unrun": "failed"}
        assert ran == []
    finally:
        registry.remove("unrun")
