"""The `@handler` decorator: a function subscribed to topics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, cast

from outbox.errors import RegistrationError
from outbox.registry import Arguments, OnFailure
from outbox.run import Run
from outbox.worker.actor import OutboxActor

from .declaration import ActorDecorator, declare
from .delivery_options import DEFAULT_BATCH_WAIT, delivery_options


def handler(
    *topics: str,
    name: str | None = None,
    ordered: bool = False,
    on_failure: OnFailure = "block",
    transactional: bool = False,
    batch_size: int | None = None,
    batch_wait: timedelta | float = DEFAULT_BATCH_WAIT,
    former_names: Iterable[str] = (),
    **actor_options: Any,
) -> ActorDecorator:
    """Subscribe a function to topics; a Dramatiq worker calls it with the event.

    Args:
        topics: dotted names; a final `*` matches one or more segments, any other `*` matches one segment.
        name: the handler's name; the function's dotted path if not given. Rows and messages store the name,
            so a function that moves should keep its old name here, or among `former_names`.
        ordered, on_failure, transactional, batch_size, batch_wait, former_names: the delivery options,
            described at `outbox.subscribing.delivery_options.delivery_options`.
        actor_options: any option of a Dramatiq actor: `queue_name`, `max_retries`, `time_limit`, …

    Raises:
        InvalidTopic: if a pattern is malformed.
        DuplicateHandler: if the name is taken.
        RegistrationError: without a topic, or for options that contradict each other or are out of range.
    """
    if not topics or callable(topics[0]):
        raise RegistrationError("@handler needs at least one topic, such as @handler('shop.order_paid')")
    options = delivery_options(
        ordered=ordered,
        on_failure=on_failure,
        transactional=transactional,
        batch_size=batch_size,
        batch_wait=batch_wait,
        former_names=former_names,
    )

    def decorate(function: Callable[..., Any], /) -> OutboxActor[..., Any]:
        return declare(
            function,
            kind="event",
            name=name,
            topics=topics,
            delivery_options=options,
            arguments=_events if options.batch else _event,
            actor_options=actor_options,
        )

    return cast(ActorDecorator, decorate)


def _event(run: Run) -> Arguments:
    return (run.event,), {}


def _events(run: Run) -> Arguments:
    return (run.events,), {}
