"""A worker without a broker: messages run in the thread of the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import dramatiq
from asgiref.sync import async_to_sync
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.middleware import CurrentMessage, Middleware, Retries, SkipMessage

from outbox.run import current_run
from outbox.worker.middleware import OutboxMiddleware
from outbox.worker.retries import record_retry, recorded_retry

# The middleware of these packages enqueues messages, stores results or expects a worker's threads.
_LEFT_OUT = ("dramatiq", "django_dramatiq")


class InlineBroker(dramatiq.Broker):
    """A project's broker without queues: with its actors and the project's own middleware."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        super().__init__(middleware=[])
        self.actors = broker.actors
        # `add_middleware` would declare all actors to the middleware a second time.
        self.middleware = [one for one in broker.middleware if _runs_inline(one)]
        if not any(isinstance(one, OutboxMiddleware) for one in self.middleware):
            self.middleware.insert(0, OutboxMiddleware())
        self._processed: MessageProxy | None = None

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Record that a middleware puts off the message that is processed; refuse any other message.

        Raises:
            NotImplementedError: for another message.
        """
        if self._processed is not None and self._processed.message_id == message.message_id:
            record_retry(self._processed, message, delay)
            return message
        raise NotImplementedError(
            f"a middleware enqueued {message}, and deliver() has no broker for it; "
            "take the middleware out of the settings for tests"
        )

    def process(self, message: dramatiq.Message[Any], *, may_retry: bool) -> Exception | None:
        """Run a message as a worker does; return its error.

        Args:
            may_retry: after an error, record a retry that is due at once, as `Retries` would with a delay.
        """
        self._processed = proxy = MessageProxy(message)
        try:
            self.emit_before("process_message", proxy)
            # A middleware may have failed the message.
            actor = None if proxy.failed else self.get_actor(message.actor_name)
            result = actor and actor(*message.args, **message.kwargs)
            self.emit_after("process_message", proxy, result=result)
        except SkipMessage as skipped:
            proxy.stuff_exception(skipped)
            self.emit_after("skip_message", proxy)
        except BaseException as error:
            if may_retry and not self._is_final(message, error):
                message.options["retries"] = message.options.get("retries", 0) + 1
                if (run := current_run.get()) is not None and run.message_id == message.message_id:
                    run.retry = recorded_retry(message, timedelta())
            self.emit_after("process_message", proxy, exception=error)
            if not isinstance(error, Exception):
                raise
            return error
        return None

    def _is_final(self, message: dramatiq.Message[Any], error: BaseException) -> bool:
        throws = message.options.get("throws") or self.get_actor(message.actor_name).options.get("throws")
        return isinstance(error, throws or ())


def _runs_inline(middleware: Middleware) -> bool:
    if isinstance(middleware, CurrentMessage):
        return True
    if isinstance(middleware, Retries):
        return False
    # A worker that ran in this process may have replaced a middleware, so `type` would name another class.
    return middleware.__class__.__module__.partition(".")[0] not in _LEFT_OUT


class _InlineLoop:
    """An event loop in the test's thread, so that async handlers share the test's transaction."""

    def run_coroutine(self, coroutine: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await coroutine

        return async_to_sync(run)()


@contextmanager
def coroutines_inline() -> Generator[None]:
    """Run async handlers in this thread instead of a worker's event loop."""
    before = get_event_loop_thread()
    set_event_loop_thread(cast(EventLoopThread, _InlineLoop()))
    try:
        yield
    finally:
        set_event_loop_thread(before)
