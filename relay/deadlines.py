"""A deadline for calls that offer no way to bound them, such as looking up a host's name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def within(timeout_s: float, call: Callable[[], T], *, undo: Callable[[], object] = lambda: None) -> T:
    """Return what `call` returns, or give up on it.

    The thread of one given up goes on in the background, so `call` must not matter once nobody waits for it.

    Args:
        undo: called by that thread, once `call` has ended after all.

    Raises:
        TimeoutError: if it takes longer than `timeout_s`.
    """
    attempt = _Attempt(call, undo)
    thread = threading.Thread(target=attempt.run, name="outbox-relay-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not attempt.is_over():
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if attempt.failure is not None:
        raise attempt.failure
    return attempt.results[0]


class _Attempt(Generic[T]):
    """A call in a thread of its own, which somebody waits for or no more."""

    def __init__(self, call: Callable[[], T], undo: Callable[[], object]) -> None:
        self.results: list[T] = []
        self.failure: BaseException | None = None
        self._call = call
        self._undo = undo
        self._ending = threading.Lock()
        self._ended = self._given_up = False

    def run(self) -> None:
        """Call, and undo it if nobody waits any more."""
        try:
            self.results.append(self._call())
        except BaseException as error:  # raised again by who waits
            self.failure = error
        with self._ending:
            self._ended = True
            if not self._given_up:
                return
        try:
            self._undo()
        except Exception:
            logger.warning("what came after its deadline could not be undone", exc_info=True)

    def is_over(self) -> bool:
        """Say whether the call has ended; if not, it is given up."""
        with self._ending:
            self._given_up = not self._ended
            return self._ended
