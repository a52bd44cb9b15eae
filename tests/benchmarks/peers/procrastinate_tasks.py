"""The tasks of procrastinate."""

from __future__ import annotations

from typing import Any

from procrastinate.contrib.django import app

from tests.benchmarks.processes import Tally

tally = Tally()


@app.task(name="bench")
async def bench(payload: dict[str, Any]) -> None:
    """Count. The task is async, because a worker runs jobs concurrently only in its event loop."""
    tally.hit()
