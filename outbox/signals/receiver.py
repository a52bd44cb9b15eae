"""The `@receiver` decorator: a receiver that a worker runs after the sender's transaction has committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import dramatiq
from django.dispatch import Signal

from outbox.conditions import Condition, signal_condition, split_condition
from outbox.errors import InstanceMissing
from outbox.registry import DeliveryOptions, OnFailure, registry
from outbox.subscribing.declaration import ActorDecorator, declare
from outbox.subscribing.delivery_options import DEFAULT_BATCH_WAIT, delivery_options
from outbox.worker.actor import OutboxActor

from .atomic_saves import make_saves_atomic
from .received_send import MalformedSend, Missing, arguments_of_batch, arguments_of_send
from .recorder import Subscription, needs_snapshot, subscribe


def receiver(
    signal: Signal | Iterable[Signal],
    *,
    sender: Any = None,
    when: Condition | Callable[..., bool] | None = None,
    name: str | None = None,
    missing: Missing = "discard",
    snapshot: bool | None = None,
    ordered: bool = False,
    on_failure: OnFailure = "block",
    transactional: bool = False,
    batch_size: int | None = None,
    batch_wait: timedelta | float = DEFAULT_BATCH_WAIT,
    former_names: Iterable[str] = (),
    weak: bool = True,
    dispatch_uid: Any = None,
    **actor_options: Any,
) -> ActorDecorator:
    """Run a receiver in a worker, after the sender's transaction has committed.

    Replaces `django.dispatch.receiver`: change the import, and the receiver is durable.

    Args:
        signal: a signal, or several.
        sender: as in Django; a model may be given as `"app.Model"`.
        when: a condition, checked at send time; a send that does not meet it writes nothing.
        name: the handler's name; the function's dotted path if not given.
        missing: the action if an instance is deleted before the receiver runs: discard the delivery with the
            reason, fail it, or pass None.
        snapshot: whether the event stores the instance's field values, so that the worker does not read the
            row. By default it does if there is no row to read: before a save, and before and after a delete.
        weak, dispatch_uid: accepted because Django accepts them. A handler lives as long as its module, and
            its name identifies it.
        ordered, on_failure, transactional, batch_size, batch_wait, former_names: the delivery options,
            described at `outbox.subscribing.delivery_options.delivery_options`.
        actor_options: any option of a Dramatiq actor: `queue_name`, `max_retries`, `time_limit`, …

    Raises:
        DuplicateHandler: if the name is taken.
        RegistrationError: for options that contradict each other or are out of range.
    """
    signals = [signal] if isinstance(signal, Signal) else list(signal)
    given = signal_condition(when) if when is not None and not isinstance(when, Condition) else when
    options = delivery_options(
        ordered=ordered,
        on_failure=on_failure,
        transactional=transactional,
        batch_size=batch_size,
        batch_wait=batch_wait,
        former_names=former_names,
    )

    def decorate(function: Callable[..., Any], /) -> OutboxActor[..., Any]:
        plain, decorating = split_condition(function)
        actor = _actor_of(plain, name, missing, options, actor_options)
        # A decorating condition is checked at send time, like the condition of `when`.
        condition = given & decorating if given and decorating else given or decorating
        handler = registry.get(actor.actor_name)
        for each in signals:
            stores_values = needs_snapshot(each) if snapshot is None else snapshot
            subscribe(each, sender, Subscription(handler, condition, stores_values))
        make_saves_atomic(signals)
        return actor

    return cast(ActorDecorator, decorate)


def _actor_of(
    function: Callable[..., Any],
    name: str | None,
    missing: Missing,
    options: DeliveryOptions,
    actor_options: dict[str, Any],
) -> OutboxActor[..., Any]:
    # A second @receiver on one function only adds a subscription, for example to another sender.
    if isinstance(function, OutboxActor):
        return function
    return declare(
        function,
        kind="signal",
        name=name,
        delivery_options=options,
        arguments=partial(arguments_of_batch if options.batch else arguments_of_send, missing),
        actor_options=_without_useless_retries(missing, actor_options),
    )


def _without_useless_retries(missing: Missing, options: dict[str, Any]) -> dict[str, Any]:
    if "throws" not in dramatiq.get_broker().actor_options:
        return options
    throws = options.get("throws", ())
    given = throws if isinstance(throws, tuple) else (throws,)
    # A retry would not find a deleted row either; it would only delay the failure.
    deleted = (InstanceMissing,) if missing == "fail" else ()
    return {**options, "throws": (*given, *deleted, MalformedSend)}
