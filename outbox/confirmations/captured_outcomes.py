"""Capturing outcomes instead of buffering them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from .outcome import Outcome

captured_outcomes: ContextVar[list[Outcome] | None] = ContextVar("outbox_captured_outcomes", default=None)


@contextmanager
def capture_outcomes() -> Generator[list[Outcome]]:
    """Collect the outcomes of this thread in a list, for a caller that confirms them itself."""
    outcomes: list[Outcome] = []
    token = captured_outcomes.set(outcomes)
    try:
        yield outcomes
    finally:
        captured_outcomes.reset(token)
