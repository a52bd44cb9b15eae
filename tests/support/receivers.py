"""Receivers of signals that are connected inside a block, and record their calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.dispatch import Signal

import outbox
from outbox.registry import registry
from outbox.signals.recorder import unsubscribe
from tests.testapp.handlers import QUEUE

Calls = list[dict[str, Any]]


@contextmanager
def ordinary(signal: Signal, sender: Any = None, answer: Callable[..., Any] | None = None) -> Iterator[Calls]:
    """Connect a receiver of Django; it records its arguments and returns the result of `answer`."""
    calls: Calls = []

    def receive(**arguments: Any) -> Any:
        calls.append(arguments)
        return answer(**arguments) if answer else None

    signal.connect(receive, sender=sender, weak=False)
    try:
        yield calls
    finally:
        signal.disconnect(receive, sender=sender)


@contextmanager
def background(
    subscribe: Callable[..., Any] | Signal, name: str = "listening", **options: Any
) -> Iterator[Calls]:
    """Subscribe a background receiver to a signal, or with another decorator."""
    calls: Calls = []
    lock = threading.Lock()

    def receive(*args: Any, **arguments: Any) -> None:
        with lock:
            calls.append({"event": args[0]} if args else arguments)

    if isinstance(subscribe, Signal):
        outbox.receiver(subscribe, name=name, queue_name=QUEUE, **options)(receive)
    else:
        subscribe(name=name, queue_name=QUEUE, **options)(receive)
    try:
        yield calls
    finally:
        unsubscribe(name)
        registry.remove(name)
