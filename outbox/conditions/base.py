"""The base class of conditions: they combine, bind to models and wrap receivers."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from functools import reduce, wraps
from operator import and_
from types import MethodType
from typing import Any, TypeVar, cast

import dramatiq
from asgiref.sync import iscoroutinefunction
from django.db.models import Model

from outbox.errors import RegistrationError

# A model, or "app.Model" for one that may not be loaded yet.
ModelRef = type[Model] | str
Receiver = TypeVar("Receiver", bound=Callable[..., Any])

# A mapping instead of an attribute, because functools.wraps would copy an attribute to other wrappers.
_conditions: weakref.WeakKeyDictionary[Callable[..., Any], Condition] = weakref.WeakKeyDictionary()


class Condition:
    """Decide at send time whether a receiver runs."""

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        """Return whether the receiver runs for this send."""
        raise NotImplementedError

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        """Return additional arguments of the receiver, such as `changes`."""
        return {}

    def models(self) -> tuple[ModelRef, ...] | None:
        """Return the models that the condition can allow, or None for any model."""
        return None

    def bind(self, sender: Any = None) -> None:
        """Start to track a model, or all models that the condition can allow.

        Call it before instances are loaded, because old values are kept only from then on.

        Raises:
            RegistrationError: if the condition names a field that the model lacks.
        """
        named = isinstance(sender, str) or (isinstance(sender, type) and issubclass(sender, Model))
        self.track((sender,) if named else self.models())

    def track(self, models: tuple[ModelRef, ...] | None) -> None:
        """Keep the old values that the condition compares; None stands for every suitable model."""

    def __and__(self, other: Condition) -> Condition:
        return _All(self, other)

    def __or__(self, other: Condition) -> Condition:
        return _Any(self, other)

    def __invert__(self) -> Condition:
        return _Not(self)

    def __call__(self, receiver: Receiver) -> Receiver:
        """Return a receiver that runs only when the condition allows it.

        Raises:
            RegistrationError: for a background receiver, which has subscribed already.
        """
        if isinstance(receiver, dramatiq.Actor):
            raise RegistrationError(
                f"a condition stands above the decorator of {receiver.actor_name!r} and would be ignored; "
                "put it below @receiver, or pass it as when=…"
            )
        self.bind()
        if not isinstance(receiver, MethodType):
            return cast(Receiver, _conditional(self, receiver))
        function = _conditional(self, receiver.__func__)
        # A weak connection keeps neither the instance nor the wrapper alive. The finalizer ties the wrapper's
        # lifetime to the instance.
        weakref.finalize(receiver.__self__, _do_nothing, function).atexit = False
        return cast(Receiver, MethodType(function, receiver.__self__))


class _Combined(Condition):
    def __init__(self, *parts: Condition) -> None:
        self.parts = parts

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        found = (part.extra(sender, **kwargs) for part in self.parts)  # noqa: S610 - no QuerySet
        return reduce(_merge, found)

    def track(self, models: tuple[ModelRef, ...] | None) -> None:
        for part in self.parts:
            part.track(models)


class _All(_Combined):
    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return all(part.allows(sender, **kwargs) for part in self.parts)

    def models(self) -> tuple[ModelRef, ...] | None:
        return next((models for part in self.parts if (models := part.models()) is not None), None)


class _Any(_Combined):
    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return any(part.allows(sender, **kwargs) for part in self.parts)

    def models(self) -> tuple[ModelRef, ...] | None:
        found = [part.models() for part in self.parts]
        known = [models for models in found if models is not None]
        return tuple(model for models in known for model in models) if len(known) == len(found) else None


class _Not(_Combined):
    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return not self.parts[0].allows(sender, **kwargs)


def split_condition(receiver: Callable[..., Any]) -> tuple[Callable[..., Any], Condition | None]:
    """Return a receiver without its condition decorators, and their conditions combined with `&`."""
    found: list[Condition] = []
    while receiver in _conditions:
        found.append(_conditions[receiver])
        receiver = cast(Any, receiver).__wrapped__
    return receiver, reduce(and_, found) if found else None


def refuse_condition(name: str, function: Callable[..., Any]) -> None:
    """Refuse a handler whose function still has a condition: a worker cannot decide it.

    Raises:
        RegistrationError: with the remedy.
    """
    wrapped: Any = function
    while wrapped is not None:
        if wrapped in _conditions:
            raise RegistrationError(
                f"handler {name!r} has a condition that is not decided when a signal is sent; put it "
                "directly below @receiver, or pass it as when=…"
            )
        wrapped = getattr(wrapped, "__wrapped__", None)


def accepted_names(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keyword arguments that a function takes, or None if it takes any name."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _conditional(condition: Condition, receiver: Callable[..., Any]) -> Callable[..., Any]:
    names = accepted_names(receiver)

    def decide(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        # Signals pass the sender by keyword; a direct call may pass it by position.
        named = kwargs if "sender" in kwargs else {"sender": args[-1], **kwargs}
        if not condition.allows(**named):
            return None
        return _merge(kwargs, _only(names, condition.extra(**named)))

    if iscoroutinefunction(receiver):

        @wraps(receiver)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            arguments = decide(args, kwargs)
            return None if arguments is None else await receiver(*args, **arguments)
    else:

        @wraps(receiver)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            arguments = decide(args, kwargs)
            return None if arguments is None else receiver(*args, **arguments)

    _conditions[wrapper] = condition
    return wrapper


def _only(names: frozenset[str] | None, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if names is None else {name: arguments[name] for name in names & arguments.keys()}


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two sets of arguments and their `changes`."""
    merged = {**first, **second}
    if "changes" in first and "changes" in second:
        merged["changes"] = {**first["changes"], **second["changes"]}
    return merged


def _do_nothing(*kept_alive: Any) -> None:
    """Do nothing: the finalizer has kept its arguments alive until this call."""


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in their order, without duplicates."""
    return tuple(dict.fromkeys(names))
