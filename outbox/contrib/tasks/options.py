"""The options of tasks: from OPTIONS of the backend, from `@task`, and from OPTIONS for one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import iscoroutinefunction, signature
from typing import Any

from outbox.errors import suggestion
from outbox.registry import DeliveryOptions

from .framework import AnyTask

DELIVERY_OPTIONS: Mapping[str, type] = {"key": str, "ordered": bool, "transactional": bool}
# Durations are milliseconds, as in Dramatiq.
ACTOR_OPTIONS: Mapping[str, type] = {
    "max_retries": int,
    "min_backoff": int,
    "max_backoff": int,
    "max_age": int,
    "time_limit": int,
}
TASK_OPTIONS = {**DELIVERY_OPTIONS, **ACTOR_OPTIONS}

# OPTIONS of the backend that are not defaults of its tasks.
DATABASE = "database"
TASKS = "tasks"


def options_of(task: AnyTask, backend_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task: the backend's, overridden by `@task`, and by OPTIONS for this task."""
    own = {name: getattr(task, name, None) for name in TASK_OPTIONS}
    chosen = {
        **{name: value for name, value in backend_options.items() if name in TASK_OPTIONS},
        **{name: value for name, value in own.items() if value is not None},
    }
    by_path = backend_options.get(TASKS)
    last = by_path.get(task.module_path) if isinstance(by_path, dict) else None
    # The check of the backend reports an option of the wrong type.
    return {**chosen, **last} if isinstance(last, dict) else chosen


def delivery_options(options: Mapping[str, Any]) -> DeliveryOptions:
    """Return the delivery options among the options of a task."""
    return DeliveryOptions(
        ordered=options.get("ordered", False), transactional=options.get("transactional", False)
    )


def actor_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the Dramatiq actor among the options of a task."""
    return {name: value for name, value in options.items() if name in ACTOR_OPTIONS}


def key_of(task: AnyTask, option: str | None, args: list[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the key of a call: the value of the argument that the option names, as text.

    Raises:
        TypeError: if the arguments do not fit the function.
    """
    if option is None:
        return ""
    context = (None,) if task.takes_context else ()
    bound = signature(task.func).bind(*context, *args, **kwargs)
    bound.apply_defaults()
    return str(bound.arguments[option])


def faults(options: Mapping[str, Any], known: Mapping[str, type] = TASK_OPTIONS) -> Iterator[str]:
    """Describe each option that is unknown or has a value of the wrong type."""
    for name, value in options.items():
        wanted = known.get(name)
        if wanted is None:
            yield f"{name!r} is not an option{suggestion(str(name), known)}"
        elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            yield f"{name!r} is {value!r}; it must be of type {wanted.__name__}"
        elif isinstance(value, int) and value < 0:
            yield f"{name!r} is {value!r}; it must not be negative"


def misfits(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Describe each option that does not fit the function of its task."""
    key = options.get("key")
    if key is not None and key not in signature(function).parameters:
        yield f"key={key!r} is not a parameter of the function"
    if key is None and options.get("ordered"):
        yield "ordered=True needs key='…', the parameter whose value is the ordering key"
    if options.get("transactional") and iscoroutinefunction(function):
        yield "transactional=True is not for async functions, as Django's transactions are sync"
