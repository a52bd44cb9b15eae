"""The tasks of django-tasks-db."""

from __future__ import annotations

from typing import Any

from django_tasks import task

from tests.benchmarks.processes import Tally

tally = Tally()


@task()
def bench(payload: dict[str, Any]) -> None:
    """Count."""
    tally.hit()
