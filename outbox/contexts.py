"""The context that events carry in their headers, and the event that a handler processes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from .errors import InvalidPayload
from .events import ReceivedEvent
from .observability.tracing import add_headers, tracers

RESERVED_HEADERS = frozenset({"context", "correlation_id", "causation_id"})

_context: ContextVar[Mapping[str, Any]] = ContextVar("outbox_context", default=MappingProxyType({}))
_event: ContextVar[ReceivedEvent | None] = ContextVar("outbox_event", default=None)


@contextmanager
def context(**fields: Any) -> Generator[Mapping[str, Any]]:
    """Add fields to the context of every event published inside the block.

    If a field is a function, it is called whenever an event is published.
    """
    merged = {**_context.get(), **fields}
    token = _context.set(merged)
    try:
        yield merged
    finally:
        _context.reset(token)


def current_context() -> dict[str, Any]:
    """Return the context of an event that is published now."""
    return {name: value() if callable(value) else value for name, value in _context.get().items()}


def current_event() -> ReceivedEvent | None:
    """Return the event that the running handler processes, None outside a handler."""
    return _event.get()


class SavedContext:
    """The current context, saved for code that runs later and in steps, such as a generator."""

    def __init__(self) -> None:
        self._fields = _context.get()

    @contextmanager
    def active(self) -> Generator[None]:
        """Make the context current for one step, and save the changes that the step makes to it."""
        token = _context.set(self._fields)
        try:
            yield
        finally:
            self._fields = _context.get()
            _context.reset(token)


class Handling:
    """A block in which an event and its context are current, as in a worker that runs the handler.

    At its end, both are as before the block, even if the block has changed them. Without an event, that is
    its only effect.
    """

    # The values before the block, and not tokens: an interrupt may come between a change and the assignment
    # of its token.
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
    """Return the headers of a new event: given headers, the context, the event that caused it, traces.

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
    if tracers:
        add_headers(headers)
    return headers
