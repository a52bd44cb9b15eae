"""A deadline for calls that have no timeout of their own, such as the lookup of a host name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def within(timeout_s: float, call: Callable[[], T], *, undo: Callable[[], object] = lambda: None) -> T:
    """Return the result of `call`, or abandon the call after `timeout_s`.

    The thread of an abandoned call continues in the background, so its late result must do no harm.

    Args:
        undo: called in that thread when an abandoned call has ended.

    Raises:
        TimeoutError: if the call takes longer than `timeout_s`.
    """
    attempt = _Attempt(call, undo)
    thread = threading.Thread(target=attempt.run, name="outbox-relay-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if attempt.abandon_unless_ended():
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if attempt.failure is not None:
        raise attempt.failure
    return attempt.results[0]


class _Attempt(Generic[T]):
    """A call in its own thread, which the caller waits for or has abandoned."""

    def __init__(self, call: Callable[[], T], undo: Callable[[], object]) -> None:
        self.results: list[T] = []
        self.failure: BaseException | None = None
        self._call = call
        self._undo = undo
        self._ending = threading.Lock()
        self._ended = self._abandoned = False

    def run(self) -> None:
        """Call, and undo the call if it was abandoned."""
        try:
            self.results.append(self._call())
        except BaseException as error:  # the waiting thread raises it again
            self.failure = error
        with self._ending:
            self._ended = True
            if not self._abandoned:
                return
        try:
            self._undo()
        except Exception:
            logger.warning("the result of a call that ended after its deadline was not undone", exc_info=True)

    def abandon_unless_ended(self) -> bool:
        """Abandon the call unless it has ended; return whether it was abandoned."""
        with self._ending:
            self._abandoned = not self._ended
            return self._abandoned
