"""What procrastinate imports."""

from __future__ import annotations

from typing import Any

from procrastinate.contrib.django import app

from tests.benchmarks.processes import Tally

tally = Tally()


@app.task(name="bench")
async def bench(payload: dict[str, Any]) -> None:
    """Count. Async, as a worker runs many jobs at once only in its event loop."""
    tally.hit()
