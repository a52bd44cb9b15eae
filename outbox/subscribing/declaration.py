"""The declaration of a handler: its checks, its actor and its entry in the registry."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

import dramatiq

from outbox.conditions import refuse_condition
from outbox.errors import RegistrationError
from outbox.registry import ArgumentsOf, DeliveryOptions, Handler, Kind, registry
from outbox.run import Run, RunObserver
from outbox.topics import check_pattern
from outbox.worker.actor import OutboxActor

P = ParamSpec("P")
R = TypeVar("R")

MAX_NAME_LENGTH = 255


class ActorDecorator(Protocol):
    """A decorator that makes an actor of a function and keeps the types of its parameters and result."""

    # mypy finds an Awaitable ambiguous for an async function with **kwargs: Any, and a Coroutine not.
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> OutboxActor[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> OutboxActor[P, R]: ...


def declare(
    function: Callable[..., Any],
    *,
    kind: Kind,
    name: str | None,
    topics: tuple[str, ...] = (),
    delivery_options: DeliveryOptions,
    arguments: ArgumentsOf,
    actor_options: dict[str, Any],
    observer: Callable[[Run], RunObserver] | None = None,
) -> OutboxActor[..., Any]:
    """Declare the actor of a function and register it as a handler.

    Raises:
        DuplicateHandler: if the name is taken.
        InvalidTopic: if a topic pattern is malformed.
        RegistrationError: if the function or an option of the actor does not fit the delivery options.
    """
    name = name or f"{function.__module__}.{function.__qualname__}"
    registry.refuse_duplicate(name, function)
    _check(name, function, topics, delivery_options)
    decorate = dramatiq.actor(actor_class=OutboxActor, actor_name=name, **actor_options)
    actor = cast(OutboxActor[..., Any], decorate(function))
    registry.add(
        Handler(
            name=name,
            kind=kind,
            function=function,
            actor=actor,
            topics=topics,
            arguments=arguments,
            observer=observer,
            **vars(delivery_options),
        )
    )
    return actor


def _check(
    name: str,
    function: Callable[..., Any],
    topics: tuple[str, ...],
    delivery_options: DeliveryOptions,
) -> None:
    for topic in topics:
        check_pattern(topic)
    check_name(name)
    refuse_condition(name, function)
    if delivery_options.transactional and iscoroutinefunction(function):
        raise RegistrationError(
            f"handler {name!r} is transactional and async; Django's transactions are sync, so make it a def"
        )


def check_name(name: str) -> None:
    """Refuse a handler name that is too long for its column.

    Raises:
        RegistrationError: if it is too long.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise RegistrationError(
            f"the handler name {name!r} is longer than {MAX_NAME_LENGTH} characters; give a shorter name=…"
        )
