"""The run of the message whose hooks this thread calls.

A run normally has a run context from the before-hook on. An interrupt, an error, or a middleware in front of
the outbox's middleware may end a message before that. Its after-hooks then read the run from the message.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.middleware import Interrupt

from outbox.confirmations import confirmations
from outbox.confirmations.outcome import Outcome
from outbox.registry import registry
from outbox.run import MALFORMED, Run

from .run_context import RunContext

logger = logging.getLogger(__name__)

RETURN_DELAY = timedelta(seconds=30)

run_context: ContextVar[RunContext | None] = ContextVar("outbox_run_context", default=None)
# The last message whose outcome this thread knows, and a run without a context. A later message of the same
# delivery has the same id, so the message itself is noted.
_decided: ContextVar[weakref.ref[Any] | None] = ContextVar("outbox_decided", default=None)
_unprepared: ContextVar[Run | None] = ContextVar("outbox_unprepared_run", default=None)


class CurrentRun:
    """Yields the run of a message, if its outcome is unknown, and leaves its context once that is reported.

    If a time limit or a shutdown interrupts the report, the context stays. Dramatiq then reports the
    interrupt as the message's failure, which becomes the outcome.
    """

    __slots__ = ("_message", "_run_context", "run")

    def __init__(self, message: Any) -> None:
        # A proxy looks attributes up in Python code.
        message_id = getattr(message, "_message", message).message_id
        context = run_context.get()
        # The context may be another message's: after an interrupt, or if the messages are nested.
        if context is not None and context.run.message_id != message_id:
            context = None
        self._message = message
        self._run_context = context
        decided = _decided.get()
        if decided is not None and decided() is message:
            self.run = None
        else:
            self.run = _unprepared_run(message) if context is None else context.run

    def __enter__(self) -> Run | None:
        return self.run

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind and issubclass(kind, Interrupt):
            return
        if self._run_context is not None:
            self._run_context.__exit__()
            run_context.set(self._run_context.outer)
        decide(self._message)


def report(run: Run, outcomes: Sequence[Outcome], error: BaseException | None = None) -> None:
    """Report the outcomes of a run.

    Args:
        error: the error of the run, for the tracers.
    """
    # Traces end before, so that a tracer knows of a failure before its log record.
    if run.trace is not None:
        run.end_trace((one.result or ("put_off" if one.unstarted else "") for one in outcomes), error)
    confirmations.add(*outcomes)


def begin() -> None:
    """Forget the message before."""
    if _decided.get() is not None:
        _decided.set(None)
    if _unprepared.get() is not None:
        _unprepared.set(None)


def decide(message: Any) -> None:
    """Note that a message needs no outcome any more."""
    _decided.set(weakref.ref(message))
    _unprepared.set(None)


def return_unprepared(message: MessageProxy, error: Exception) -> None:
    """Return a message to pending after an error in the before-hook, or fail it if that is impossible."""
    logger.error("message %s could not be prepared", message.message_id, exc_info=error)
    try:
        run = read_run(message)
        if run is not None:
            reason = f"the run could not be prepared: {type(error).__name__}: {error}"
            confirmations.add(*Outcome.not_started(run, reason, RETURN_DELAY))
            return
    except Exception:
        logger.exception("message %s could not be returned", message.message_id)
    # The message goes to the broker's dead letters.
    message.fail()


def _unprepared_run(message: Any) -> Run | None:
    run = _unprepared.get()
    if run is None or run.message_id != message.message_id:
        run = _read(message)
        _unprepared.set(run)
    return run


def read_run(message: Any) -> Run | None:
    """Read the run from a message, with the present name of its handler.

    Raises:
        MALFORMED: as `Run.from_message` does.
    """
    run = Run.from_message(message)
    if run is not None:
        run.handler = registry.name_of(run.handler)
    return run


def _read(message: Any) -> Run | None:
    try:
        run = read_run(message)
    except MALFORMED:
        return None
    handler = None if run is None else registry.handlers.get(run.handler)
    if run is not None and handler is not None and handler.ordered and len(run.events) == 1:
        run.ordering_key = run.event.key
    return run
