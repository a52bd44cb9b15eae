"""The results of tasks, read from their event, their delivery and their attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from outbox.errors import DeliveryFailed
from outbox.models import Delivery, TaskAttempt

from .framework import AnyResult, AnyTask, TaskError, TaskResultStatus

_NOT_RUN = f"{DeliveryFailed.__module__}.{DeliveryFailed.__qualname__}"


def path_of(exception: BaseException) -> str:
    """Return the path of an exception's class."""
    kind = type(exception)
    return f"{kind.__module__}.{kind.__qualname__}"


def attempts_of(database: str, event_id: UUID) -> list[TaskAttempt]:
    """Return the attempts of a call, oldest first."""
    return list(TaskAttempt.objects.using(database).filter(event_id=event_id).order_by("pk"))


def new_result(
    task: AnyTask,
    *,
    event_id: UUID,
    payload: Mapping[str, Any],
    enqueued_at: datetime | None,
    attempts: Sequence[TaskAttempt] = (),
    status: TaskResultStatus = TaskResultStatus.READY,
    finished_at: datetime | None = None,
) -> AnyResult:
    """Return the result of a call."""
    return AnyResult(
        task=task_of_call(task, payload),
        id=str(event_id),
        status=status,
        enqueued_at=enqueued_at,
        started_at=attempts[0].started_at if attempts else None,
        last_attempted_at=attempts[-1].started_at if attempts else None,
        finished_at=finished_at,
        args=payload["args"],
        kwargs=payload["kwargs"],
        backend=payload.get("backend", task.backend),
        errors=[
            TaskError(exception_class_path=each.exception_class, traceback=each.traceback)
            for each in attempts
            if each.exception_class
        ],
        worker_ids=[each.worker_id for each in attempts],
    )


def task_of_call(task: AnyTask, payload: Mapping[str, Any]) -> AnyTask:
    """Return a task with the due time and the backend of a call."""
    due = payload.get("run_after")
    run_after = datetime.fromisoformat(due) if due else None
    backend = payload.get("backend", task.backend)
    if (run_after, backend) == (task.run_after, task.backend):
        return task
    return replace(task, run_after=run_after, backend=backend)


def result_of(task: AnyTask, delivery: Delivery, attempts: Sequence[TaskAttempt]) -> Any:
    """Return the result of a call from its rows.

    Args:
        delivery: with its event.
        attempts: read after the delivery, so that they include the attempt of its outcome.
    """
    result: Any = new_result(
        task,
        event_id=delivery.event_id,
        payload=delivery.event.payload,
        enqueued_at=delivery.event.created_at,
        attempts=attempts,
        status=status_of(delivery, attempts),
        finished_at=_finished_at(delivery, attempts),
    )
    if result.status == TaskResultStatus.SUCCESSFUL:
        succeeded = [each for each in attempts if each.finished_at and not each.exception_class]
        set_fields(result, _return_value=succeeded[-1].return_value if succeeded else None)
    elif result.status == TaskResultStatus.FAILED and not (attempts and attempts[-1].exception_class):
        # A crash, an operator, or an expiry has ended the delivery.
        result.errors.append(TaskError(exception_class_path=_NOT_RUN, traceback=delivery.error))
    return result


def _finished_at(delivery: Delivery, attempts: Sequence[TaskAttempt]) -> datetime | None:
    """Return the end of the last run; the delivery's time if it ended without a run, None before its end."""
    # A transactional delivery is marked as finished when its run begins.
    ended = attempts[-1].finished_at if attempts else None
    return None if delivery.finished_at is None else ended or delivery.finished_at


def status_of(delivery: Delivery, attempts: Sequence[TaskAttempt]) -> TaskResultStatus:
    """Return the status of a call. It is final only when the outcome of the delivery is recorded."""
    states = Delivery.State
    if delivery.state == states.SUCCEEDED:
        return TaskResultStatus.SUCCESSFUL
    if delivery.state in (states.FAILED, states.DISCARDED):
        return TaskResultStatus.FAILED
    # After an error, the next message of the delivery has not started yet.
    if delivery.state == states.DISPATCHED and attempts and not attempts[-1].exception_class:
        return TaskResultStatus.RUNNING
    return TaskResultStatus.READY


def set_fields(result: Any, **fields: Any) -> None:
    """Change a result, which is frozen for its users, as Django's own backends do."""
    for name, value in fields.items():
        object.__setattr__(result, name, value)
