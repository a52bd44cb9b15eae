"""The context that events carry in their headers, and the event that a handler is working on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from .errors import InvalidPayload
from .events import ReceivedEvent

RESERVED_HEADERS = frozenset({"context", "correlation_id", "causation_id"})

_context: ContextVar[Mapping[str, Any]] = ContextVar("outbox_context", default=MappingProxyType({}))
_event: ContextVar[ReceivedEvent | None] = ContextVar("outbox_event", default=None)


@contextmanager
def context(**fields: Any) -> Generator[Mapping[str, Any]]:
    """Add fields to the context of every event published inside the block.

    A field that is a function is called when an event is published, and only then.
    """
    merged = {**_context.get(), **fields}
    token = _context.set(merged)
    try:
        yield merged
    finally:
        _context.reset(token)


def current_context() -> dict[str, Any]:
    """Return the context that an event published here and now would carry."""
    return {name: value() if callable(value) else value for name, value in _context.get().items()}


def current_event() -> ReceivedEvent | None:
    """Return the event that the running handler was called for, None elsewhere."""
    return _event.get()


class Suspended:
    """The context of here and now, for code that runs on later, step by step, such as a generator."""

    def __init__(self) -> None:
        self._fields = _context.get()

    @contextmanager
    def resumed(self) -> Generator[None]:
        """Make it current for one step, and keep what the step leaves."""
        token = _context.set(self._fields)
        try:
            yield
        finally:
            self._fields = _context.get()
            _context.reset(token)


class Handling:
    """Makes an event and its context current, as in the worker that runs its handler.

    Without an event it only leaves both as it found them, whatever becomes of them in between.
    """

    # What was there before and not the tokens of its change, which an interrupt may keep from being noted.
    __slots__ = ("_before", "_event")

    def __init__(self, event: ReceivedEvent | None) -> None:
        self._event = event
        self._before = _context.get(), _event.get()

    def __enter__(self) -> None:
        if self._event is not None:
            _context.set(self._event.context)
            _event.set(self._event)

    def __exit__(self, *_: object) -> None:
        context, event = self._before
        try:
            _event.set(event)
        finally:
            _context.set(context)


def headers_for(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers of a new event: the given ones, the context, and what caused it.

    Raises:
        InvalidPayload: if a given header has a reserved name.
    """
    headers = dict(given or ())
    for name in RESERVED_HEADERS.intersection(headers):
        raise InvalidPayload(f"headers[{name!r}]", "the name is reserved; add fields with outbox.context()")
    if _context.get():
        headers["context"] = current_context()
    cause = _event.get()
    if cause is not None:
        headers["correlation_id"] = cause.correlation_id
        headers["causation_id"] = str(cause.id)
    return headers
