"""Receivers that listen for the length of a block, and remember what they heard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from django.dispatch import Signal

import outbox
from outbox.collectors import unsubscribe
from outbox.registry import registry
from tests.testapp.handlers import QUEUE

Heard = list[dict[str, Any]]


@contextmanager
def ordinary(signal: Signal, sender: Any = None, answer: Callable[..., Any] | None = None) -> Iterator[Heard]:
    """Connect an ordinary receiver, which remembers the arguments and returns what `answer` returns."""
    heard: Heard = []

    def listen(**arguments: Any) -> Any:
        heard.append(arguments)
        return answer(**arguments) if answer else None

    signal.connect(listen, sender=sender, weak=False)
    try:
        yield heard
    finally:
        signal.disconnect(listen, sender=sender)


@contextmanager
def background(
    subscribe: Callable[..., Any] | Signal, name: str = "listening", **options: Any
) -> Iterator[Heard]:
    """Subscribe a background receiver to a signal, or by another decorator."""
    heard: Heard = []
    lock = threading.Lock()

    def listen(*args: Any, **arguments: Any) -> None:
        with lock:
            heard.append({"event": args[0]} if args else arguments)

    if isinstance(subscribe, Signal):
        outbox.receiver(subscribe, name=name, queue_name=QUEUE, **options)(listen)
    else:
        subscribe(name=name, queue_name=QUEUE, **options)(listen)
    try:
        yield heard
    finally:
        unsubscribe(name)
        registry.remove(name)


def clear_broker() -> None:
    """Drop the messages that earlier tests left behind."""
    dramatiq.get_broker().flush_all()
