"""Injected failures: runs of a handler that fail on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dramatiq

from outbox.registry import registry
from outbox.run import current_run

Error = BaseException | type[BaseException]


class InjectedFailure(Exception):
    """Raised by `fail_handler` instead of a handler's call, unless another error is given."""


@dataclass
class Injected:
    """The failures of one `fail_handler` block.

    Args:
        left: failures that are still to come.
        count: failures so far.
    """

    left: int
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self) -> bool:
        """Use up one failure; return whether one was left."""
        with self._lock:
            if self.left <= 0:
                return False
            self.left -= 1
            self.count += 1
            return True


@contextmanager
def fail_handler(
    handler: str | dramatiq.Actor[..., Any], times: int = 1, error: Error | None = None
) -> Generator[Injected]:
    """Let the next runs of a handler fail before its call, inline or in a worker of this process.

    A call of the handler as a plain function is no run, and does not fail.

    Args:
        handler: its name, or the handler itself.
        times: how many runs fail; later runs call the handler.
        error: the exception or its class.

    Raises:
        UnknownHandler: with the closest known name.
    """
    name = handler if isinstance(handler, str) else handler.actor_name
    actor = registry.get(name).actor
    injected, function = Injected(left=times), actor.fn
    actor.fn = _failing(function, name, injected, error)
    try:
        yield injected
    finally:
        actor.fn = function


def _failing(
    function: Callable[..., Any], name: str, injected: Injected, error: Error | None
) -> Callable[..., Any]:
    def run_or_fail(*args: Any, **kwargs: Any) -> Any:
        run = current_run.get()
        if run is not None and run.handler == name and injected.take():
            raise error if error is not None else InjectedFailure(f"failure {injected.count} of {name!r}")
        return function(*args, **kwargs)

    return run_or_fail
