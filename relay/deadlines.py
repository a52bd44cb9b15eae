"""A deadline for calls that offer no way to bound them, such as looking up a host's name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or give up on it.

    The thread of one given up goes on in the background, so `call` must not matter once nobody waits for it.

    Raises:
        TimeoutError: if it takes longer than `timeout_s`.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # raised again below
            failure.append(error)

    thread = threading.Thread(target=run, name="outbox-relay-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return outcome[0]
