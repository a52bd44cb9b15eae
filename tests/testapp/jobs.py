"""Tasks of Django's task framework, in a module that neither Django nor the outbox imports at its start."""

from __future__ import annotations

import time
from typing import Any

from django.db import connection

from outbox import current_event
from outbox.contrib.tasks.framework import TaskContext, task

from .handlers import OTHER_QUEUE, QUEUE, Refused
from .models import Effect


@task(queue_name=QUEUE)
def add(a: int, b: int = 0) -> int:
    Effect.objects.create(handler="add", key=str(a), detail={"sum": a + b})
    return a + b


@task(queue_name=OTHER_QUEUE)
def echo(*args: Any, **kwargs: Any) -> Any:
    return {"args": args, "kwargs": kwargs}


@task(queue_name=QUEUE)
async def add_async(a: int, b: int) -> int:
    await Effect.objects.acreate(handler="add_async", key=str(a))
    return a + b


@task(queue_name=QUEUE, takes_context=True)
def describe_context(context: TaskContext[..., Any], word: str) -> dict[str, Any]:
    result = context.task_result
    return {"attempt": context.attempt, "id": result.id, "status": result.status, "word": word}


@task(queue_name=QUEUE)
def fail() -> None:
    raise Refused("always")


@task(queue_name=QUEUE, takes_context=True)
def fail_once(context: TaskContext[..., Any]) -> str:
    if context.attempt == 1:
        raise Refused("the first time")
    return "done"


@task(queue_name=QUEUE)
def return_object() -> object:
    return object()


@task(queue_name=QUEUE)
def add_in_order(key: str, number: int) -> None:
    Effect.objects.create(handler="add_in_order", key=key, detail={"number": number})


@task(queue_name=QUEUE)
def see_event() -> dict[str, Any]:
    event = current_event()
    return {"id": str(event.id) if event else None, "in_transaction": connection.in_atomic_block}


@task(queue_name=QUEUE, backend="immediate")
def greet(name: str) -> str:
    return f"hello {name}"


def plain_function() -> None:
    """Declare no task."""


@task(queue_name=QUEUE, takes_context=True)
def fail_after_write(context: TaskContext[..., Any], word: str) -> int:
    """Write, and fail the first time. OPTIONS make it transactional."""
    Effect.objects.create(handler="fail_after_write", key=word)
    if context.attempt == 1:
        raise Refused("the first time")
    return Effect.objects.filter(handler="fail_after_write").count()


@task(queue_name=QUEUE)
def wait_for_effect(name: str) -> None:
    """Run until an effect of this name exists."""
    while not Effect.objects.filter(handler=name).exists():
        time.sleep(0.02)
