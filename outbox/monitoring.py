"""Timing of ordinary functions and receivers, into the statistics of the background handlers."""

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

# As wide as the column.
MAX_NAME_LENGTH = 255

# Decorators that use functools.wraps copy it, so it says of them too that what they wrap is timed.
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
        name: the name in the statistics; the function's dotted path if not given.

    Raises:
        RegistrationError: for what is no function, a handler (which is timed already), or an ill-sized name.
    """
    if function is None:
        return partial(monitor, name=name)
    if isinstance(function, dramatiq.Actor):
        raise RegistrationError(f"{function!r} runs in the background, where it is timed without @monitor")
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise RegistrationError(f"{function!r} is not a function; put @monitor right above the def")
    if name is not None and not 0 < len(name) <= MAX_NAME_LENGTH:
        raise RegistrationError(f"name {name!r} must have between 1 and {MAX_NAME_LENGTH} characters")
    return _timed(function, name or _dotted_path(function))


def monitor_signal(signal: Signal) -> int:
    """Time each receiver that is connected to a signal now, under its own dotted path.

    Receivers that connect later are not timed, so call it when all are connected, such as in the last app's
    `ready()`; another call adds what is new. Receivers keep their order, their `dispatch_uid` and their weak
    references, and disconnect as ever. The outbox's own are left alone.

    Returns:
        How many receivers it began to time.
    """
    # Django has no hook for this. Connecting the receivers anew would lose their order, and a moment in
    # which none is connected would lose sends; so their entries are exchanged, under the signal's own lock.
    with signal.lock:
        before = signal.receivers
        signal.receivers = [(key, _monitored(held), *rest) for key, held, *rest in before]
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


def _count(name: str, verdict: str, duration_s: float) -> None:
    try:
        if get_settings().stats:
            (_buffer or _load_buffer()).count(name, verdict, duration_s)
    except Exception:
        # Such as no more threads: nothing that watches a function may break it.
        logger.exception("a call of %s could not be counted", name)


def _load_buffer() -> Confirmations:
    # It needs the models, which are not there yet where an `apps.py` imports this module.
    global _buffer
    from .confirmations import confirmations

    _buffer = confirmations
    return confirmations


class _TimedReceiver:
    """A receiver that is timed, in the place of itself among a signal's receivers."""

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
    """A weak reference to a receiver that gives it timed."""

    def __call__(self) -> Any:
        receiver = super().__call__()
        return None if receiver is None else _TimedReceiver(receiver, _dotted_path(receiver))


class _TimedMethodRef(weakref.WeakMethod):  # type: ignore[type-arg]  # takes no type arguments at run time
    """The same for a bound method."""

    def __call__(self) -> Any:
        receiver = super().__call__()
        return None if receiver is None else _TimedReceiver(receiver, _dotted_path(receiver))


def _monitored(held: Any) -> Any:
    """Return what a signal is to hold in the place of a receiver, or of a weak reference to one."""
    weak = isinstance(held, weakref.ReferenceType)
    receiver = held() if weak else held
    if receiver is None or isinstance(receiver, _TimedReceiver) or _is_left_alone(receiver):
        return held
    if not weak:
        return _TimedReceiver(receiver, _dotted_path(receiver))
    return (_TimedMethodRef if isinstance(held, weakref.WeakMethod) else _TimedFunctionRef)(receiver)


def _is_left_alone(receiver: Any) -> bool:
    own = getattr(receiver, "__module__", None) or ""
    return hasattr(receiver, _MARK) or own.startswith(f"{__package__}.")


def _dotted_path(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    # The end of a path says more than its beginning.
    return f"{named.__module__}.{named.__qualname__}"[-MAX_NAME_LENGTH:]
