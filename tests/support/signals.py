"""The sends of telemetry signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.dispatch import Signal


@contextmanager
def sent(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """Collect the arguments of a signal's sends."""
    seen: list[dict[str, Any]] = []

    def collect(sender: Any, **kwargs: Any) -> None:
        seen.append({name: value for name, value in kwargs.items() if name != "signal"})

    signal.connect(collect)
    try:
        yield seen
    finally:
        signal.disconnect(collect)
