"""The backend of Django's task framework that writes tasks into the outbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

from django.core.checks import CheckMessage
from django.db import connections, transaction

from outbox.conf import get_settings
from outbox.models import Delivery, Event
from outbox.publishing.own_transaction import has_own_transaction
from outbox.publishing.publish import publish_to
from outbox.registry import Handler, registry
from outbox.topics import topic_of

from .configuration import check_backend
from .declared import declared_tasks, task_of
from .framework import (
    AnyResult,
    AnyTask,
    BaseTaskBackend,
    InvalidTask,
    TaskResultDoesNotExist,
    task_enqueued,
)
from .options import DATABASE, faults, key_of, misfits, options_of
from .results import attempts_of, new_result, result_of, set_fields
from .task import OutboxTask

TASK_TOPIC = "task"


class OutboxBackend(BaseTaskBackend):
    """Writes each call of a task as an event with one delivery, in the caller's transaction.

    OPTIONS are `database` (an alias of `OUTBOX["DATABASES"]`), the options of `OutboxTask` as defaults, and
    `tasks` (the options of single tasks by their path).
    """

    task_class = OutboxTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = False

    @property
    def database(self) -> str:
        """The alias of the database of the tasks."""
        return str(self.options.get(DATABASE) or get_settings().databases[0])

    def validate_task(self, task: AnyTask) -> None:
        """Refuse a task that cannot run as configured.

        Raises:
            InvalidTask: with the reason.
        """
        super().validate_task(task)
        options = options_of(task, self.options)
        for fault in (*faults(options), *misfits(task.func, options)):
            raise InvalidTask(f"task {task.module_path!r}: {fault}")
        declared_tasks.note(task)

    def enqueue(self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write the call in the current transaction; without one, in a transaction of its own.

        Raises:
            PublishError: if the arguments cannot be stored.
            TypeError: if an argument is not JSON, or the key is not among the arguments.
        """
        self.validate_task(task)
        handler = self._handler_of(task)
        call = {"args": list(args), "kwargs": kwargs, **_call_options(task, task_of(handler))}
        result: Any = new_result(task, event_id=UUID(int=0), payload=call, enqueued_at=None)
        event = self._publish(handler, task, {**call, "args": result.args, "kwargs": result.kwargs})
        set_fields(result, id=str(event.id), enqueued_at=event.created_at)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> AnyResult:
        """Read the result of a call.

        Raises:
            TaskResultDoesNotExist: if there is no such call, or it is past its retention.
        """
        try:
            event_id = UUID(result_id)
        except (ValueError, TypeError, AttributeError):
            raise TaskResultDoesNotExist(result_id) from None
        deliveries = Delivery.objects.using(self.database).select_related("event")
        # A replay has added a delivery; the newest one counts.
        delivery = deliveries.filter(event_id=event_id).order_by("-pk").first()
        handler = None if delivery is None else registry.find(delivery.handler)
        if delivery is None or handler is None or handler.kind != "task":
            raise TaskResultDoesNotExist(result_id)
        found: AnyResult = result_of(task_of(handler), delivery, attempts_of(self.database, event_id))
        return found

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return the faults of the backend in TASKS."""
        return [*super().check(**kwargs), *check_backend(self)]

    def _handler_of(self, task: AnyTask) -> Handler:
        declared_tasks.start(self.alias)
        return declared_tasks.handler_of(task)

    def _publish(self, handler: Handler, task: AnyTask, payload: Mapping[str, Any]) -> Event:
        key = options_of(task, self.options).get("key")
        with self._transaction():
            event = publish_to(
                [handler],
                topic=topic_of(TASK_TOPIC, task.module_path),
                payload=payload,
                key=key_of(task, key, payload["args"], payload["kwargs"]),
                eta=task.run_after,
                using=self.database,
            )
            # The time of the database, as `get_result` reads it.
            event.refresh_from_db(fields=["created_at"])
            return event

    def _transaction(self) -> AbstractContextManager[Any]:
        """Return a context that opens a transaction, unless the caller has opened one."""
        if has_own_transaction(connections[self.database]):
            return nullcontext()
        return transaction.atomic(using=self.database)


def _call_options(task: AnyTask, declared: AnyTask) -> dict[str, str]:
    """Return the due time of a call, and its backend if that is not the backend of the declared task."""
    options = {} if task.run_after is None else {"run_after": task.run_after.isoformat()}
    return options if task.backend == declared.backend else {**options, "backend": task.backend}
