"""The task with the options of the outbox, which Django 6.1 and the backport accept as `@task(…)`."""

from __future__ import annotations

from dataclasses import dataclass

from .framework import AnyTask


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTask(AnyTask):
    """A task whose runs are deliveries; None leaves an option to OPTIONS of the backend.

    Args:
        key: the parameter whose value, as text, is the key of the event.
        ordered: run the calls with the same key one at a time, in order.
        transactional: commit the effects of the function together with its success; not for async functions.
        max_retries: how often Dramatiq's `Retries` runs the task again after an error.
        min_backoff, max_backoff: bounds of the wait before a retry, in milliseconds.
        max_age: milliseconds after which a call is not run any more.
        time_limit: milliseconds after which a run is interrupted.
    """

    key: str | None = None
    ordered: bool | None = None
    transactional: bool | None = None
    max_retries: int | None = None
    min_backoff: int | None = None
    max_backoff: int | None = None
    max_age: int | None = None
    time_limit: int | None = None
