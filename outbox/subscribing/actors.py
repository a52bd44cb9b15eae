"""The actor whose messages are sent when the current transaction commits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar
from uuid import UUID, uuid5

import dramatiq
from django.db import connection, transaction

from outbox.publishing.own_transaction import has_own_transaction
from outbox.publishing.publish import publish_to
from outbox.registry import Handler, registry
from outbox.topics import topic_of
from outbox.worker.actor import OutboxActor

from .declaration import check_name
from .delivery_options import checked_names

P = ParamSpec("P")
R = TypeVar("R")

ACTOR_TOPIC = "actor"


class TransactionalActor(OutboxActor[P, R]):
    """An actor whose messages are sent when the current transaction commits, and not after a rollback.

    Use it as `@dramatiq.actor(actor_class=TransactionalActor)`. Messages that are composed without `send`
    (pipelines, groups, `on_success` and similar) go to the broker directly, without the outbox. The option
    `former_names` lists names that the actor had before; older messages of these names run this function.
    """

    def __init__(self, fn: Callable[P, Coroutine[Any, Any, R]] | Callable[P, R], **options: Any) -> None:
        check_name(options["actor_name"])
        registry.refuse_duplicate(options["actor_name"], fn)
        super().__init__(fn, **options)
        former_names = checked_names(self.options.get("former_names", ()))
        registry.add(
            Handler(name=self.actor_name, kind="actor", function=fn, actor=self, former_names=former_names)
        )

    def send_with_options(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        using: str | None = None,
        **options: Any,
    ) -> dramatiq.Message[R]:
        """Publish the call in the current transaction.

        Args:
            delay: a timedelta or milliseconds, as in Dramatiq; counted by the database clock.
            using: the database alias of the transaction.

        Raises:
            PublishError: as `publish()` does.
        """
        message = self.message_with_options(args=args, kwargs=kwargs, **options)
        payload: dict[str, Any] = {"args": list(message.args), "kwargs": message.kwargs}
        if message.options:
            payload["options"] = message.options
        event = publish_to(
            [registry.get(self.actor_name)],
            topic=topic_of(ACTOR_TOPIC, self.actor_name),
            payload=payload,
            delay=timedelta(milliseconds=delay) if isinstance(delay, int) else delay,
            using=using,
        )
        return message._replace(message_id=message_id(event.id, self.actor_name))

    def publish_message(self, message: dramatiq.Message[Any], delay: int | None = None) -> None:
        """Publish a message that was composed without `send`, in a transaction of its own if there is none.

        Args:
            delay: in milliseconds.

        Raises:
            PublishError: as `publish()` does.
        """
        own = nullcontext() if has_own_transaction(connection) else transaction.atomic()
        with own:
            self.send_with_options(args=message.args, kwargs=message.kwargs, delay=delay, **message.options)


def message_id(event_id: UUID, handler: str) -> str:
    """Return the message id of a delivery: a UUID, the same for each redelivery."""
    return str(uuid5(event_id, handler))
