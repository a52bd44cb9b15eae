"""Retries of deliveries: a middleware enqueues the message again, and the table keeps the retry instead."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, cast

from dramatiq import Broker, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Retries, SkipMessage

from outbox.models import storable
from outbox.operations.unknown_handlers import RETURNS_OPTION
from outbox.run import RecordedRetry

from .message_runs import CurrentRun

logger = logging.getLogger(__name__)

# Options of one message in the broker. The next message of the delivery has others.
_OF_ONE_MESSAGE = frozenset({"outbox", "redis_message_id", "eta"})

# Packages whose middleware enqueues no message again, except for `Retries`.
_OTHER_PACKAGES = ("django_dramatiq", "dramatiq", "outbox")

# The message whose hook this thread calls.
_hooked: ContextVar[MessageProxy | None] = ContextVar("outbox_hooked_message", default=None)

# An escaped NUL in JSON, with the escaped backslashes before it. PostgreSQL stores no NUL.
_NUL = re.compile(r"((?<!\\)(?:\\\\)*)\\u0000")


def record_retries(broker: Broker) -> None:
    """Let each middleware that may enqueue a delivery's message again record a retry instead.

    These are `Retries` and the middleware of the project. Dramatiq passes the broker itself to each
    middleware, so the middleware has to be replaced.
    """
    for index, middleware in enumerate(broker.middleware):
        if _may_enqueue_again(middleware):
            broker.middleware[index] = cast(Middleware, RecordingMiddleware(middleware))
    if not any(isinstance(one, _RecordingEnqueue) for one in broker.middleware):
        broker.middleware.append(_RecordingEnqueue())


def _may_enqueue_again(middleware: Middleware) -> bool:
    kind = type(middleware)
    return issubclass(kind, Retries) or kind.__module__.partition(".")[0] not in _OTHER_PACKAGES


def has_retries(broker: Broker) -> bool:
    """Return whether a broker has a `Retries` middleware, replaced or not."""
    return any(isinstance(one, Retries) for one in broker.middleware)


_HOOKS_OF_FAILURES = (Middleware.after_process_message, Retries.after_process_message)


class RecordingMiddleware:
    """A middleware whose retries of deliveries are recorded in their run.

    Its class and all other attributes are the ones of the replaced middleware.
    """

    _replaced: Middleware
    _sees_success: bool

    def __init__(self, replaced: Middleware) -> None:
        object.__setattr__(self, "_replaced", replaced)
        # The hook of Dramatiq itself does nothing after a success.
        sees_success = getattr(replaced.after_process_message, "__func__", None) not in _HOOKS_OF_FAILURES
        object.__setattr__(self, "_sees_success", sees_success)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._replaced, name, value)

    @property  # type: ignore[misc]  # `object` has an attribute
    def __class__(self) -> type:
        """The class of the replaced middleware, for `isinstance`."""
        return type(self._replaced)

    def __repr__(self) -> str:
        return repr(self._replaced)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Call the replaced hook with a broker that records a retry."""
        with _recording(broker, message) as recording:
            self._replaced.before_process_message(recording, message)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Call the replaced hook with a broker that records a retry."""
        with _recording(broker, message) as recording:
            self._replaced.after_skip_message(recording, message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Call the replaced hook, after an error with a broker that records a retry."""
        if exception is None and not self._sees_success:
            return
        hook: Any = self._replaced.after_process_message  # has no annotations
        if exception is None:
            hook(broker, message, result=result, exception=None)
            return
        if isinstance(self._replaced, Retries) and _is_of_outbox(message) and not CurrentRun(message).run:
            return  # the outcome is known: an interrupt came after it
        with _recording(broker, message) as recording:
            hook(recording, message, result=result, exception=exception)


class _RecordingBroker:
    """The broker of a worker, except that it records the retry of a message instead of enqueueing it."""

    def __init__(self, broker: Broker, message: MessageProxy) -> None:
        self._broker = broker
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Record the retry of the message; enqueue any other message."""
        if message.message_id != self._message.message_id:
            return self._broker.enqueue(message, delay=delay)
        record_retry(self._message, message, delay)
        return message


class _RecordingEnqueue(Middleware):
    """Records a retry that a hook enqueues at another reference to the broker than its argument."""

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Record the retry, and end the hook as a skip.

        Raises:
            SkipMessage: if a hook of the same message enqueues it.
        """
        hooked = _hooked.get()
        if hooked is not None and hooked.message_id == message.message_id:
            record_retry(hooked, message, delay)
            raise SkipMessage("the table keeps the retry of a delivery")


@contextmanager
def _recording(broker: Broker, message: MessageProxy) -> Generator[Broker]:
    """Yield the broker for a hook of a message."""
    if not _is_of_outbox(message):
        yield broker
        return
    token = _hooked.set(message)
    try:
        yield cast(Broker, _RecordingBroker(broker, message))
    finally:
        _hooked.reset(token)


def _is_of_outbox(message: MessageProxy) -> bool:
    return isinstance(message.options.get("outbox"), Mapping)


def record_retry(message: Any, enqueued: Message[Any], delay_ms: int | None) -> None:
    """Record in the run of a message that a middleware has enqueued it again; not if it has an outcome."""
    run = CurrentRun(message).run
    if run is not None:
        run.retry = recorded_retry(enqueued, timedelta(milliseconds=delay_ms or 0))


def recorded_retry(message: Message[Any] | MessageProxy, delay: timedelta) -> RecordedRetry:
    """Return the retry of a message, with the options and the timestamp that its next message carries."""
    options = {name: value for name, value in message.options.items() if name != RETURNS_OPTION}
    return RecordedRetry(delay, options_as_json(message, options))


def options_as_json(message: Message[Any] | MessageProxy, options: Mapping[str, Any]) -> str:
    """Return the options of a next message as JSON, with the timestamp of a message."""
    stored = {name: value for name, value in options.items() if name not in _OF_ONE_MESSAGE}
    stored["message_timestamp"] = message.message_timestamp
    if isinstance(traceback := stored.get("traceback"), str):
        stored["traceback"] = storable(traceback)
    return _json(stored)


def _json(options: Mapping[str, Any]) -> str:
    members = []
    for name, value in options.items():
        try:
            members.append(json.dumps({name: value}, ensure_ascii=False, allow_nan=False)[1:-1])
        except (TypeError, ValueError) as error:
            logger.error("the retry loses the message option %r, which is not JSON: %s", name, error)
    text = f"{{{', '.join(members)}}}".encode("utf-8", "replace").decode()
    return _NUL.sub(r"\1\\\\0", text)
