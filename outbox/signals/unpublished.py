"""Sends that reach only ordinary receivers: a worker repeats them from a recorded event."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.dispatch import Signal

Send = tuple[Signal, Any, Mapping[str, Any]]

_unpublished: ContextVar[Send | None] = ContextVar("outbox_unpublished", default=None)


@contextmanager
def unpublished(signal: Signal, sender: Any, arguments: Mapping[str, Any]) -> Generator[None]:
    """Do not publish this one send within the block; further sends of its receivers are published."""
    token = _unpublished.set((signal, sender, arguments))
    try:
        yield
    finally:
        _unpublished.reset(token)


def is_unpublished(signal: Signal, sender: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether this send is the one of the `unpublished()` block: the same argument objects."""
    send = _unpublished.get()
    return (
        send is not None
        and send[0] is signal
        and send[1] is sender
        and send[2].keys() == arguments.keys()
        and all(send[2][name] is value for name, value in arguments.items())
    )
