"""Statistics of ordinary functions and receivers, in the table of the handlers' statistics."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import partial, wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, overload

import dramatiq
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.dispatch import Signal

from .conf import get_settings
from .errors import RegistrationError

if TYPE_CHECKING:
    from .confirmations import Confirmations

logger = logging.getLogger(__name__)

# The width of the column.
MAX_NAME_LENGTH = 255

# functools.wraps copies this attribute, so a decorated function with a timed function inside has it too.
_MARK = "_outbox_monitored"

Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def monitor(function: Function, *, name: str | None = None) -> Function: ...


@overload
def monitor(function: None = None, *, name: str | None = None) -> Callable[[Function], Function]: ...


def monitor(function: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Time each call of a function, and count its success or error: `@monitor` or `@monitor(name=…)`.

    Takes functions, coroutine functions and methods; put it below `@staticmethod` and `@classmethod`.

    Args:
        function: the function; None if the decorator is called with options.
        name: the name in the statistics; the function's dotted path if not given.

    Raises:
        RegistrationError: if it is no function, or a handler (which is timed already), or if the name is
            empty or too long.
    """
    if function is None:
        return partial(monitor, name=name)
    if isinstance(function, dramatiq.Actor):
        raise RegistrationError(f"{function!r} is a handler, which is timed already; remove @monitor")
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise RegistrationError(f"{function!r} is not a function; put @monitor directly above the def")
    if name is not None and not 0 < len(name) <= MAX_NAME_LENGTH:
        raise RegistrationError(
            f"name {name!r} has {len(name)} characters; give between 1 and {MAX_NAME_LENGTH}"
        )
    return _timed(function, name or _dotted_path(function))


def monitor_signal(signal: Signal) -> int:
    """Time each receiver that is connected to a signal now, under its own dotted path.

    Receivers that connect later are not timed. Call the function when all receivers are connected, such as
    in the last app's `ready()`; another call adds new receivers. Receivers keep their order, `dispatch_uid`
    and weak references, and can be disconnected. The outbox's receivers are not timed.

    Returns:
        The number of receivers that are timed from now on.
    """
    # Django has no hook for this. To disconnect and connect the receivers would lose their order, and the
    # sends in between. Their entries are therefore replaced under the signal's lock.
    with signal.lock:
        before = signal.receivers
        signal.receivers = [(key, _monitored(entry), *rest) for key, entry, *rest in before]
        signal.sender_receivers_cache.clear()
        return sum(new[1] is not old[1] for new, old in zip(signal.receivers, before, strict=True))


def _timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    if iscoroutinefunction(function):

        @wraps(function)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            return await _acall(function, name, args, kwargs)
    else:

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return _call(function, name, args, kwargs)

    setattr(timed, _MARK, True)
    return timed


def _call(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    started = perf_counter()
    try:
        result = function(*args, **kwargs)
    except BaseException:
        _count(name, "failed", perf_counter() - started)
        raise
    _count(name, "succeeded", perf_counter() - started)
    return result


async def _acall(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    started = perf_counter()
    try:
        result = await function(*args, **kwargs)
    except BaseException:
        _count(name, "failed", perf_counter() - started)
        raise
    _count(name, "succeeded", perf_counter() - started)
    return result


_buffer: Confirmations | None = None


def _count(name: str, result: str, duration_s: float) -> None:
    try:
        if get_settings().stats:
            (_buffer or _load_buffer()).count(name, result, duration_s)
    except Exception:
        # No error of the count, such as a lack of threads, may fail the call.
        logger.exception("a call of %s could not be counted", name)


def _load_buffer() -> Confirmations:
    # The import needs the models, which are not loaded when an `apps.py` imports this module.
    global _buffer
    from .confirmations import confirmations

    _buffer = confirmations
    return confirmations


class _TimedReceiver:
    """A timed receiver, which replaces the receiver in a signal's list."""

    def __init__(self, receiver: Callable[..., Any], name: str) -> None:
        self.receiver = receiver
        self.name = name
        self.call = _call
        if iscoroutinefunction(receiver):
            self.call = _acall
            markcoroutinefunction(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.receiver, self.name, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Django logs a receiver by its __qualname__.
        return getattr(self.receiver, name)


class _TimedFunctionRef(weakref.ref):  # type: ignore[type-arg]  # takes no type arguments at run time
    """A weak reference to a function that returns its timed receiver."""

    def __call__(self) -> Any:
        receiver = super().__call__()
        return None if receiver is None else _TimedReceiver(receiver, _dotted_path(receiver))


class _TimedMethodRef(weakref.WeakMethod):  # type: ignore[type-arg]  # takes no type arguments at run time
    """A weak reference to a bound method that returns its timed receiver."""

    def __call__(self) -> Any:
        receiver = super().__call__()
        return None if receiver is None else _TimedReceiver(receiver, _dotted_path(receiver))


def _monitored(entry: Any) -> Any:
    """Return the replacement of a receiver, or of a weak reference to a receiver."""
    weak = isinstance(entry, weakref.ReferenceType)
    receiver = entry() if weak else entry
    if receiver is None or isinstance(receiver, _TimedReceiver) or _is_excluded(receiver):
        return entry
    if not weak:
        return _TimedReceiver(receiver, _dotted_path(receiver))
    return (_TimedMethodRef if isinstance(entry, weakref.WeakMethod) else _TimedFunctionRef)(receiver)


def _is_excluded(receiver: Any) -> bool:
    module = getattr(receiver, "__module__", None) or ""
    return hasattr(receiver, _MARK) or module.startswith(f"{__package__}.")


def _dotted_path(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    # The end of a path is the more specific part.
    return f"{named.__module__}.{named.__qualname__}"[-MAX_NAME_LENGTH:]
