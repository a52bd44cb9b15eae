"""The `@handler` decorator: a function subscribed to topics."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from .actors import OutboxActor, declare
from .errors import RegistrationError
from .registry import Arguments, Batching, Manner, OnFailure
from .runs import Run

DEFAULT_BATCH_WAIT = timedelta(seconds=5)


def handler(
    *topics: str,
    name: str | None = None,
    ordered: bool = False,
    on_failure: OnFailure = "block",
    transactional: bool = False,
    batch_size: int | None = None,
    batch_wait: timedelta | float = DEFAULT_BATCH_WAIT,
    pack: int | None = None,
    **actor_options: Any,
) -> Callable[[Callable[[Any], Any]], OutboxActor]:
    """Subscribe a function to topics; a Dramatiq worker calls it with the event.

    Args:
        topics: dotted names; a final `*` stands for one or more segments, any other `*` for one.
        name: the handler's name, its dotted path if not given. Rows and messages refer to it, so a
            function that moves should keep its old name here.
        ordered: deliver the events of one key one after the other.
        on_failure: `"block"` lets nothing pass a failed delivery of its key until an operator retries or
            discards it, `"skip"` lets the next one go.
        transactional: run it in a transaction in which its success is recorded too, so that its effects on
            the event's database happen exactly once.
        batch_size: call it with a list of up to so many events, in the order of their publication. A batch
            that fails is retried whole; if it fails again, its events go one by one to find the bad one.
        batch_wait: how long (a timedelta, or seconds) the oldest event of a batch waits for it to be full.
        pack: let up to so many due deliveries travel as one message, to save what each message costs. It is
            still called with one event at a time, and each delivery has an outcome of its own.
        actor_options: any option of a Dramatiq actor: `queue_name`, `max_retries`, `time_limit`, …

    Raises:
        InvalidTopic: if a pattern is malformed.
        DuplicateHandler: if the name is taken.
        RegistrationError: without a topic, or for arguments that contradict each other or can never work.
    """
    if not topics or callable(topics[0]):
        raise RegistrationError("@handler needs at least one topic, such as @handler('shop.order_paid')")

    manner = Manner(
        ordered=ordered,
        on_failure=on_failure,
        transactional=transactional,
        batch=batching(batch_size, batch_wait),
        pack=pack,
    )

    def decorate(function: Callable[[Any], Any]) -> OutboxActor:
        arguments = _events if manner.batch else _event
        return declare(
            function,
            kind="event",
            name=name,
            topics=topics,
            manner=manner,
            arguments=arguments,
            actor_options=actor_options,
        )

    return decorate


def batching(size: int | None, wait: timedelta | float) -> Batching | None:
    """Return how a handler is batched, None if it is not.

    Raises:
        RegistrationError: if the batch could never run.
    """
    if size is None:
        return None
    return Batching(size=size, wait=wait if isinstance(wait, timedelta) else timedelta(seconds=wait))


def _event(run: Run) -> Arguments:
    return (run.event,), {}


def _events(run: Run) -> Arguments:
    return (run.events,), {}
