"""The checks of a backend in TASKS, which Django's task framework runs.
outbox.E009  OPTIONS have an unknown option, a wrong value, or the path of no task
outbox.E010  QUEUES is empty, or has a name that Dramatiq does not accept
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS

from outbox.conf import get_settings
from outbox.errors import InvalidSetting, suggestion
from outbox.registry import registry

from .framework import BaseTaskBackend
from .options import DATABASE, TASK_OPTIONS, TASKS, faults

# Dramatiq accepts these names.
_QUEUE = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")


def check_backend(backend: BaseTaskBackend) -> list[CheckMessage]:
    """Return the faults of OPTIONS and QUEUES."""
    setting = f"TASKS[{backend.alias!r}]"
    return [
        *(
            Error(
                f"{setting}['OPTIONS']: {fault}.",
                hint=f"Options are {DATABASE!r}, {TASKS!r} and {', '.join(map(repr, TASK_OPTIONS))}.",
                id="outbox.E009",
            )
            for fault in _option_faults(backend.options)
        ),
        *(
            Error(
                f"{setting}['QUEUES']: {fault}.",
                hint="List each queue of the tasks; workers consume the listed queues.",
                id="outbox.E010",
            )
            for fault in _queue_faults(backend.queues)
        ),
    ]


def _option_faults(options: Mapping[str, Any]) -> Iterator[str]:
    yield from faults(options, {**TASK_OPTIONS, DATABASE: str, TASKS: dict})
    database = options.get(DATABASE, DEFAULT_DB_ALIAS)
    served = _databases()
    if DATABASE in options and served and database not in served:
        hint = suggestion(str(database), served)
        yield f"{DATABASE!r} is {database!r}, which OUTBOX['DATABASES'] lacks{hint}"
    by_path = options.get(TASKS)
    for path, own in by_path.items() if isinstance(by_path, dict) else ():
        if not isinstance(own, dict):
            yield f"{TASKS!r}[{path!r}] is {own!r}; it must be a dict"
            continue
        yield from (f"{TASKS!r}[{path!r}]: {fault}" for fault in faults(own))
        handler = registry.find(path)
        if handler is None or handler.kind != "task":
            yield f"{TASKS!r}[{path!r}] cannot be imported as a task"


def _queue_faults(queues: set[str]) -> Iterator[str]:
    if not queues:
        yield "it is empty, so no worker would consume the queues that tasks name"
    for queue in sorted(queues):
        if not _QUEUE.fullmatch(queue):
            yield f"{queue!r} is not a name that Dramatiq accepts: letters, digits, '.', '_' and '-'"


def _databases() -> tuple[str, ...]:
    try:
        return get_settings().databases
    except InvalidSetting:
        # check_settings reports it.
        return ()
