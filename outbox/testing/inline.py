"""A worker without a broker: a message runs where it is processed."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import dramatiq
from asgiref.sync import async_to_sync
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.middleware import CurrentMessage, Middleware, SkipMessage

from outbox.middleware import OutboxMiddleware

# Their middleware enqueues (retries, callbacks, pipelines), stores results or expects a worker's threads.
_LEFT_OUT = ("dramatiq", "django_dramatiq")


class InlineBroker(dramatiq.Broker):
    """Stands in for a project's broker: its actors, the project's own middleware, and no queue behind it."""

    def __init__(self, broker: dramatiq.Broker) -> None:
        super().__init__(middleware=[])
        self.actors = broker.actors
        # Not added one by one, which would announce all actors to it again.
        self.middleware = [one for one in broker.middleware if _runs_inline(one)]
        if not any(isinstance(one, OutboxMiddleware) for one in self.middleware):
            self.middleware.insert(0, OutboxMiddleware())

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> NoReturn:
        """Refuse: nothing leaves a test this way.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"a middleware enqueued {message}, which deliver() has no broker for")

    def process(self, message: dramatiq.Message[Any], *, may_retry: bool) -> Exception | None:
        """Run a message as a worker does; return its error.

        Args:
            may_retry: after an error act as if the message had been enqueued again.
        """
        proxy = MessageProxy(message)
        try:
            self.emit_before("process_message", proxy)
            result = self.get_actor(message.actor_name)(*message.args, **message.kwargs)
            self.emit_after("process_message", proxy, result=result)
        except SkipMessage:
            self.emit_after("skip_message", proxy)
        except BaseException as error:
            if may_retry and not self._is_final(message, error):
                message.options["retries"] = message.options.get("retries", 0) + 1
                self.emit_after("enqueue", message, 0)
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
    return type(middleware).__module__.partition(".")[0] not in _LEFT_OUT


class _InlineLoop:
    """Runs coroutines of async handlers so that they share the test's thread, and thereby its transaction."""

    def run_coroutine(self, coroutine: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await coroutine

        return async_to_sync(run)()


@contextmanager
def coroutines_inline() -> Generator[None]:
    """Let async handlers run in this thread, in the place of a worker's event loop."""
    before = get_event_loop_thread()
    set_event_loop_thread(cast(EventLoopThread, _InlineLoop()))
    try:
        yield
    finally:
        set_event_loop_thread(before)
