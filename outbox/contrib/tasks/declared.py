"""The handlers of tasks, declared when the apps are ready, and imported by their path when they run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from time import monotonic
from typing import Any

import dramatiq

from outbox.errors import DuplicateHandler, RegistrationError
from outbox.registry import Arguments, Handler, registry
from outbox.run import Run
from outbox.subscribing.declaration import declare

from .execution import TaskRun
from .framework import AnyTask, InvalidTask, task_backends
from .options import actor_options, delivery_options, options_of

logger = logging.getLogger(__name__)

# Between the path of a task and a queue that `using(queue_name=…)` has chosen.
QUEUE_MARK = "@"

# The time for which a name that could not be imported is not tried again, and the number of such names.
IMPORT_AGAIN_AFTER_S = 30.0
MAX_NOT_IMPORTED = 10_000


class DeclaredTasks:
    """The tasks of this process, each a handler that has the name of the path of its function.

    Tasks may be declared before the broker is configured, so they become handlers when `start` is called.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, AnyTask] = {}
        self._lock = threading.RLock()
        self._aliases: tuple[str, ...] = ()
        self._not_imported: dict[str, float] = {}

    def start(self, *aliases: str) -> None:
        """Declare the queues of the backends, make handlers of the tasks, and import others when they run.

        Args:
            aliases: the backends of the outbox in TASKS.
        """
        if self._aliases and set(aliases) <= set(self._aliases):
            return
        with self._lock:
            self._aliases = tuple(dict.fromkeys([*self._aliases, *aliases]))
            registry.importer = self.import_handler
            for alias in aliases:
                # A worker consumes the queues that are declared, and third-party tasks are imported later.
                for queue in sorted(task_backends[alias].queues):
                    dramatiq.get_broker().declare_queue(queue)
            waiting, self._waiting = self._waiting, {}
        for task in waiting.values():
            try:
                self.handler_of(task)
            except DuplicateHandler:
                # The registry keeps the error: a check reports it, and publishing is refused.
                continue

    def note(self, task: AnyTask) -> None:
        """Make a handler of a task, at once or when the apps are ready."""
        with self._lock:
            if not self._aliases:
                self._waiting.setdefault(f"{task.module_path}{QUEUE_MARK}{task.queue_name}", task)
                return
        self.handler_of(task)

    def handler_of(self, task: AnyTask) -> Handler:
        """Return the handler of a task, which is declared now if it is new.

        Raises:
            DuplicateHandler: if another handler has the name of the task.
        """
        path = task.module_path
        with self._lock:
            first = registry.handlers.get(path) or _declare(task, path)
            if first.kind != "task":
                registry.refuse_duplicate(path, task.func)
            if first.queue == task.queue_name:
                return first
            name = f"{path}{QUEUE_MARK}{task.queue_name}"
            return registry.handlers.get(name) or _declare(task, name)

    def import_handler(self, name: str) -> None:
        """Import the module of a task, and declare its handler; log the reason if that is impossible."""
        if "." not in name or monotonic() < self._not_imported.get(name, 0.0):
            return
        self._try_to_import(name)
        if name not in registry.handlers:
            if len(self._not_imported) >= MAX_NOT_IMPORTED:
                self._not_imported.clear()
            self._not_imported[name] = monotonic() + IMPORT_AGAIN_AFTER_S

    def _try_to_import(self, name: str) -> None:
        path, _mark, queue = name.partition(QUEUE_MARK)
        try:
            task = self._as_ours(_imported(path))
            if task is not None:
                self.handler_of(task)
                if queue:
                    self.handler_of(task.using(queue_name=queue))
        except (ImportError, InvalidTask, RegistrationError) as error:
            logger.warning("the handler %r cannot be imported as a task: %s", name, error)
        except Exception:
            logger.exception("the handler %r cannot be imported as a task", name)

    def _as_ours(self, found: Any) -> AnyTask | None:
        """Return an imported task with a backend of the outbox; None if the object is no task."""
        function = getattr(found, "func", None)
        if not callable(function) or not hasattr(found, "takes_context"):
            return None
        if found.backend in self._aliases:
            ours: AnyTask = found
            return ours
        # The caller chose this backend by using(backend=…).
        alias = self._aliases[0]
        return task_backends[alias].task_class(
            func=function,
            priority=found.priority,
            queue_name=found.queue_name,
            backend=alias,
            takes_context=found.takes_context,
            run_after=None,
        )


declared_tasks = DeclaredTasks()


def _imported(path: str) -> Any:
    """Return the object of a path; None if there is no such module or object, as for a renamed handler."""
    module_path, _dot, name = path.rpartition(".")
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        if f"{module_path}.".startswith(f"{error.name}."):
            return None
        raise
    return getattr(module, name, None)


def task_of(handler: Handler) -> AnyTask:
    """Return the task of a handler of the kind `task`."""
    observer: Any = handler.observer
    task: AnyTask = observer.args[0]
    return task


def _declare(task: AnyTask, name: str) -> Handler:
    options = options_of(task, task.get_backend().options)
    declare(
        _function_of(task),
        kind="task",
        name=name,
        delivery_options=delivery_options(options),
        arguments=_arguments,
        actor_options={"queue_name": task.queue_name, **actor_options(options)},
        observer=partial(TaskRun, task),
    )
    return registry.handlers[name]


def _function_of(task: AnyTask) -> Callable[[TaskRun], None]:
    @wraps(task.func)
    def run(task_run: TaskRun) -> None:
        task_run.call()

    return run


def _arguments(run: Run) -> Arguments:
    return (run.observer,), {}
