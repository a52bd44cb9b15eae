"""Hooks for tracers, such as `outbox.contrib.opentelemetry` and `outbox.contrib.sentry`.

The telemetry signals report facts after their commit. A tracer needs more: blocks around a publish and a
run, and headers in which an event carries the trace to its handlers. Without a tracer, each hook costs one
look-up. The error of a tracer is logged and has no other effect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    import dramatiq

    from outbox.run import Run

logger = logging.getLogger(__name__)

# Baggage comes from clients. It must neither make a publish fail nor fill the table.
MAX_HEADER_CHARS = 1024

FAILURE = "a hook of the tracer %r failed"


@dataclass(frozen=True)
class Publication:
    """One call that publishes events.

    Args:
        database: the alias of the database.
        topics: the topic of each event.
        event_ids: the ids of the events, once they are written.
    """

    database: str
    topics: Sequence[str]
    event_ids: list[UUID] = field(default_factory=list)


class Dispatch(NamedTuple):
    """A committed batch of a relay.

    Args:
        database: the alias of the database.
        counts: the number of sent deliveries, by handler.
        duration_s: seconds from the claim to the commit.
        headers: the headers of each event, as JSON text.
    """

    database: str
    counts: Mapping[str, int]
    duration_s: float
    headers: Iterable[str]


class Tracer:
    """The hooks of a tracer; each does nothing.

    Attributes:
        header: the name of the header in which events carry the trace.
    """

    header = ""

    def inject(self) -> Mapping[str, str]:
        """Return the current trace as text, for the header of an event that is published now."""
        return {}

    def publishing(self, publication: Publication) -> AbstractContextManager[object]:
        """Return a block around the write of events, in the caller's transaction."""
        return nullcontext()

    def running(self, run: Run) -> AbstractContextManager[object]:
        """Return a block around a run, with the hooks of other middleware.

        At its end, `run.result` is set, and `run.error` after an error.
        """
        return nullcontext()

    def dispatched(self, dispatch: Dispatch) -> None:
        """Note a committed batch."""

    def joined(self, broker: dramatiq.Broker) -> None:
        """Note a broker whose messages the outbox sends and runs."""


tracers: list[Tracer] = []


def install(tracer: Tracer) -> None:
    """Add a tracer."""
    tracers.append(tracer)


def remove(tracer: Tracer) -> None:
    """Remove a tracer; do nothing if it is not installed."""
    if tracer in tracers:
        tracers.remove(tracer)


class Trace:
    """The blocks of all tracers around one publish or run; it may be left twice."""

    __slots__ = ("_hook", "_open", "_subject")

    def __init__(self, hook: Literal["publishing", "running"], subject: Publication | Run) -> None:
        self._hook = hook
        self._subject = subject
        self._open: list[AbstractContextManager[object]] = []

    def __enter__(self) -> None:
        for tracer in tracers:
            try:
                block: AbstractContextManager[object] = getattr(tracer, self._hook)(self._subject)
                block.__enter__()
            except Exception:
                logger.exception(FAILURE, tracer)
            else:
                self._open.append(block)

    def __exit__(self, kind: Any = None, error: Any = None, trace: Any = None) -> None:
        while self._open:
            block = self._open.pop()
            try:
                block.__exit__(kind, error, trace)
            except Exception:
                logger.exception(FAILURE, block)


def add_headers(headers: dict[str, Any]) -> None:
    """Add the header of each tracer, unless the publisher has given a header of that name."""
    for tracer in tracers:
        try:
            carrier = {name: text for name, text in tracer.inject().items() if _is_safe(text)}
        except Exception:
            logger.exception(FAILURE, tracer)
            continue
        if carrier:
            headers.setdefault(tracer.header, carrier)


def carried(headers: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the trace in the header of a tracer; nothing of a header that another program wrote."""
    carrier = headers.get(name)
    if not isinstance(carrier, Mapping):
        return {}
    return {key: text for key, text in carrier.items() if isinstance(text, str)}


def note_dispatch(dispatch: Dispatch) -> None:
    """Report a committed batch to the tracers."""
    for tracer in tracers:
        try:
            tracer.dispatched(dispatch)
        except Exception:
            logger.exception(FAILURE, tracer)


def note_joined(broker: dramatiq.Broker) -> None:
    """Report a broker to the tracers."""
    for tracer in tracers:
        tracer.joined(broker)


def _is_safe(text: object) -> bool:
    return isinstance(text, str) and len(text) <= MAX_HEADER_CHARS and text.isascii() and text.isprintable()
