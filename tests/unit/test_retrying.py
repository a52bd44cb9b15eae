"""The decision to try again is Dramatiq's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from outbox.retrying import retry_in

NEVER: Callable[..., bool] = lambda retries, error: False  # noqa: E731
TWICE: Callable[..., bool] = lambda retries, error: retries < 2  # noqa: E731


def dramatiq_s_own(actor: dramatiq.Actor[..., Any], retries: int, error: Exception) -> timedelta | None:
    """Return what `Retries` does with a message that has been tried so often."""
    message = MessageProxy(actor.message()._replace(options={"retries": retries}))
    delays: list[int | None] = []

    def enqueue(message: Message[Any], *, delay: int | None = None) -> None:
        delays.append(delay)

    actor.broker.enqueue = enqueue  # type: ignore[method-assign, assignment]
    actor.broker.emit_after("process_message", message, exception=error)
    assert message.failed is not bool(delays)
    return timedelta(milliseconds=delays[0] or 0) if delays else None


@pytest.mark.parametrize("rules", [{}, {"max_retries": 1}, {"retry_when": NEVER}, {"min_backoff": 7}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_retries": 0},
        {"max_retries": 2, "min_backoff": 5, "max_backoff": 9},
        {"max_retries": None},
        {"retry_when": TWICE},
        {"throws": KeyError},
        {"throws": (KeyError, ValueError)},
        {"max_backoff": 10**12, "min_backoff": 10**8},
    ],
)
@pytest.mark.parametrize("error", [ValueError("no"), dramatiq.Retry("later", delay=1234), KeyError("k")])
@pytest.mark.parametrize("retries", [0, 1, 2, 19, 20, 40])
def test_a_delivery_is_tried_again_when_its_message_would_be(
    rules: dict[str, Any], options: dict[str, Any], error: Exception, retries: int
) -> None:
    broker = StubBroker(middleware=[Retries(**rules)])
    actor = dramatiq.actor(lambda: None, broker=broker, actor_name="a", **options)
    random.seed(7)
    expected = dramatiq_s_own(actor, retries, error)
    random.seed(7)
    assert retry_in(actor, retries, error) == expected


def test_without_the_middleware_nothing_is_tried_again() -> None:
    actor = dramatiq.actor(lambda: None, broker=StubBroker(middleware=[]), actor_name="a")
    assert retry_in(actor, 0, ValueError()) is None
