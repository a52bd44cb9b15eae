"""The Dramatiq actors that run handlers, and the one whose messages join the transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any, cast
from uuid import UUID, uuid5

import dramatiq
from dramatiq.middleware import SkipMessage
from dramatiq.middleware.time_limit import TimeLimitExceeded

from .conf import get_settings
from .errors import InvalidTopic, RegistrationError
from .packs import work_off
from .registry import ArgumentsOf, Handler, Kind, Manner, registry
from .runs import Run, current_run, describe
from .settling import settling, unsettle
from .topics import check_pattern, check_topic

ACTOR_TOPIC = "actor"
MAX_NAME_LENGTH = 255

_AS_IT_IS = nullcontext()

# What Dramatiq does once for each message would be done once for a whole pack.
UNPACKABLE_OPTIONS = frozenset({"on_retry_exhausted", "on_success", "store_results"})


class OutboxActor(dramatiq.Actor[..., Any]):
    """An actor that is timed, and gets its function's arguments from the event."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function: with the event's arguments in a worker, as it is called elsewhere."""
        run = current_run.get()
        # A handler that calls another one as a plain function is not that other one's run.
        if run is None or run.handler != self.actor_name:
            return super().__call__(*args, **kwargs)
        handler = registry.get(self.actor_name)
        if run.packed:
            work_off(run, self, lambda one: self._run(handler, one, args, kwargs))
            return None
        return self._run(handler, run, args, kwargs)

    def _run(self, handler: Handler, run: Run, args: Any, kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            # A batch is split outside of its transaction, which has to be rolled back for it.
            with settling(run) if handler.transactional else _AS_IT_IS:
                args, kwargs = self._arguments(handler, run, args, kwargs)
                return super().__call__(*args, **kwargs)
        except (Exception, TimeLimitExceeded) as error:
            if not self._splits(run, error):
                raise
            self.logger.exception("A batch of %d events goes one by one.", len(run.deliveries))
            run.split = describe(error)
            return None
        finally:
            run.duration_s = time.perf_counter() - started

    def _arguments(self, handler: Handler, run: Run, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if handler.arguments is None:
            return args, kwargs
        converted = handler.arguments(run)
        if handler.transactional:
            unsettle(run)
        if run.discarded and not run.undecided:
            raise SkipMessage("; ".join(sorted(set(run.discarded.values()))))
        return converted

    def _splits(self, run: Run, error: BaseException) -> bool:
        """Say whether a failed batch is to go event by event, to find the bad one.

        It is retried whole first, unless its error is one that no retry mends. Without confirmations nothing
        brings the events back, so then it stays whole.
        """
        if len(run.deliveries) < 2 or isinstance(error, SkipMessage) or not get_settings().confirm:
            return False
        final = isinstance(error, self.options.get("throws") or ()) or self.options.get("max_retries") == 0
        return final or run.retries > 0


class TransactionalActor(OutboxActor):
    """An actor whose messages leave when the current transaction commits, or not at all.

    Use it as `@dramatiq.actor(actor_class=TransactionalActor)`. Messages that are composed without
    `send` (pipelines, groups, `on_success` and the like) go to the broker directly, as ever.
    """

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        check_name(options["actor_name"])
        registry.refuse_duplicate(options["actor_name"], fn)
        super().__init__(fn, **options)
        registry.add(Handler(name=self.actor_name, kind="actor", function=fn, actor=self))

    def send_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        using: str | None = None,
        **options: Any,
    ) -> dramatiq.Message[Any]:
        """Publish the call in the current transaction.

        Args:
            delay: a timedelta or milliseconds, as Dramatiq takes it; counted by the database clock.
            using: the database alias whose transaction it joins.

        Raises:
            PublishError: as `publish()` does.
        """
        from .publishing import publish_to

        message = self.message_with_options(args=args, kwargs=kwargs, **options)
        payload: dict[str, Any] = {"args": list(message.args), "kwargs": message.kwargs}
        if message.options:
            payload["options"] = message.options
        event = publish_to(
            [registry.get(self.actor_name)],
            topic=_topic_of(self.actor_name),
            payload=payload,
            delay=timedelta(milliseconds=delay) if isinstance(delay, int) else delay,
            using=using,
        )
        return message._replace(message_id=message_id(event.id, self.actor_name))


def message_id(event_id: UUID, handler: str) -> str:
    """Return the message id of a delivery: a UUID, the same at every redelivery."""
    return str(uuid5(event_id, handler))


def declare(
    function: Callable[..., Any],
    *,
    kind: Kind,
    name: str | None,
    topics: tuple[str, ...] = (),
    manner: Manner,
    arguments: ArgumentsOf,
    actor_options: dict[str, Any],
) -> OutboxActor:
    """Declare the actor of a function and register it as a handler.

    Raises:
        DuplicateHandler: if the name is taken.
        InvalidTopic: if a topic pattern is malformed.
        RegistrationError: for what the function or the actor's options do not allow.
    """
    name = name or f"{function.__module__}.{function.__qualname__}"
    registry.refuse_duplicate(name, function)
    _check(name, function, topics, manner, actor_options)
    decorate = dramatiq.actor(actor_class=OutboxActor, actor_name=name, **actor_options)
    actor = cast(OutboxActor, decorate(function))
    registry.add(
        Handler(
            name=name,
            kind=kind,
            function=function,
            actor=actor,
            topics=topics,
            arguments=arguments,
            **vars(manner),
        )
    )
    return actor


def _check(
    name: str,
    function: Callable[..., Any],
    topics: tuple[str, ...],
    manner: Manner,
    actor_options: dict[str, Any],
) -> None:
    for topic in topics:
        check_pattern(topic)
    check_name(name)
    if manner.transactional and iscoroutinefunction(function):
        raise RegistrationError(
            f"handler {name!r} is transactional and async; Django's transactions are sync, so make it a def"
        )
    unpackable = sorted(UNPACKABLE_OPTIONS & actor_options.keys())
    if manner.pack and unpackable:
        raise RegistrationError(
            f"handler {name!r} has both pack and {unpackable[0]}, which is about one message for each event; "
            "leave one of them out"
        )


def check_name(name: str) -> None:
    """Refuse a handler name that its column cannot keep.

    Raises:
        RegistrationError: with the remedy.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise RegistrationError(
            f"the handler name {name!r} is longer than {MAX_NAME_LENGTH} characters; give a shorter name=…"
        )


def _topic_of(actor_name: str) -> str:
    topic = f"{ACTOR_TOPIC}.{actor_name}"
    try:
        check_topic(topic)
    except InvalidTopic:
        return ACTOR_TOPIC
    return topic
