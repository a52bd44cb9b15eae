"""One run of a task in a worker: its attempt in the table, its signals and its return value."""

from __future__ import annotations

import logging
import os
import socket
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import Error
from django.db.models.functions import Now
from django.utils import timezone

from outbox.models import TaskAttempt, storable
from outbox.models.task_attempt import MAX_CLASS_PATH_LENGTH
from outbox.run import Run, describe
from outbox.serialization import dump_json

from .framework import (
    AnyTask,
    TaskContext,
    TaskError,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from .results import attempts_of, new_result, path_of, set_fields

logger = logging.getLogger(__name__)


class TaskRun:
    """Observes and executes one run of a task.

    Args:
        task: the task as it was declared.
        run: the run of its delivery.
    """

    def __init__(self, task: AnyTask, run: Run) -> None:
        self._task = task
        self._run = run
        self._attempt: TaskAttempt | None = None
        self._error: TaskError | None = None
        self._result: Any = None

    def started(self) -> None:
        """Record the attempt, outside the transaction of the function, and send `task_started`."""
        event, database = self._run.event, self._run.database
        earlier = attempts_of(database, event.id)
        self._attempt = TaskAttempt.objects.using(database).create(event_id=event.id, worker_id=_worker_id())
        self._result = new_result(
            self._task,
            event_id=event.id,
            payload=event.payload,
            enqueued_at=_in_project_time(event.created_at),
            attempts=[*earlier, self._attempt],
            status=TaskResultStatus.RUNNING,
        )
        task_started.send_robust(type(self._task.get_backend()), task_result=self._result)

    def call(self) -> None:
        """Call the function, and record its return value."""
        result = self._result
        args = result.args
        if self._task.takes_context:
            args = [TaskContext(task_result=result), *args]
        value = normalize_json(self._task.call(*args, **result.kwargs))
        dump_json(value, path="return_value")
        self._update(finished_at=Now(), return_value=value)
        set_fields(result, _return_value=value)

    def ended(self, error: BaseException | None) -> None:
        """Record the error of the attempt."""
        if error is None or self._attempt is None:
            return
        self._error = TaskError(exception_class_path=path_of(error), traceback=storable(describe(error)))
        try:
            self._update(
                finished_at=Now(),
                return_value=None,
                exception_class=self._error.exception_class_path[:MAX_CLASS_PATH_LENGTH],
                traceback=self._error.traceback,
            )
        except Error:
            # The delivery has the error too.
            logger.warning("the error of task %s could not be recorded", self._result.id, exc_info=True)

    def reported(self, *, failed: bool | None) -> None:
        """Send `task_finished`, unless the task runs again."""
        if failed is None or self._result is None:
            return
        if self._error is not None:
            self._result.errors.append(self._error)
        status = TaskResultStatus.FAILED if failed else TaskResultStatus.SUCCESSFUL
        set_fields(self._result, status=status, finished_at=_in_project_time(timezone.now()))
        task_finished.send_robust(type(self._task.get_backend()), task_result=self._result)

    def withdrawn(self) -> None:
        """Delete the attempt of a message that did not run."""
        if self._attempt is not None:
            TaskAttempt.objects.using(self._run.database).filter(pk=self._attempt.pk).delete()

    def _update(self, **fields: Any) -> None:
        if self._attempt is not None:
            attempts = TaskAttempt.objects.using(self._run.database)
            attempts.filter(pk=self._attempt.pk).update(**fields)


def _worker_id() -> str:
    return f"{socket.gethostname()[:200]}:{os.getpid()}"


def _in_project_time(moment: datetime | None) -> datetime | None:
    if moment is None or settings.USE_TZ or timezone.is_naive(moment):
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())
