"""The results of handlers: a coroutine or a generator shows that the handler's code did not run."""

from __future__ import annotations

from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TypeVar

from outbox.errors import RegistrationError

R = TypeVar("R")

_UNRUN = {
    CoroutineType: "a coroutine",
    GeneratorType: "a generator",
    AsyncGeneratorType: "an async generator",
}


def checked_result(handler: str, result: R) -> R:
    """Return the result of a handler.

    Raises:
        RegistrationError: if the handler's code has not run.
    """
    kind = None if result is None else _UNRUN.get(type(result))
    if kind is None:
        return result
    if isinstance(result, (CoroutineType, GeneratorType)):
        # Python would warn of a coroutine that is never awaited.
        result.close()
    raise RegistrationError(
        f"handler {handler!r} returned {kind}, which nothing runs; declare it as a plain function, or as an "
        "async function without yield, and apply the outbox's decorator to that function itself"
    )
