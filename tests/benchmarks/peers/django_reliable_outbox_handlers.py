"""The handlers of django-reliable-outbox."""

from __future__ import annotations

from typing import Any

from reliable_outbox import handler

from tests.benchmarks.processes import Tally

tally = Tally()


@handler("bench.single")
def bench(envelope: Any) -> None:
    """Count."""
    tally.hit()
