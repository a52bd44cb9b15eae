"""Conditions that depend only on the arguments of the send, the model or the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model

from outbox.errors import RegistrationError

from .base import Condition, ModelRef, accepted_names
from .lazy import when_loaded


class _Predicate(Condition):
    def __init__(self, function: Callable[..., bool]) -> None:
        self.function = function
        self.names = accepted_names(function)

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        arguments = {"sender": sender, **kwargs}
        if self.names is not None:
            arguments = {name: value for name, value in arguments.items() if name in self.names}
        return bool(self.function(**arguments))


def signal_condition(function: Callable[..., bool]) -> Condition:
    """Make a condition of a function, which takes any subset of the signal's arguments.

    Raises:
        RegistrationError: for an async function, because the condition is checked while the signal is sent.
    """
    if iscoroutinefunction(function):
        raise RegistrationError(
            f"{function!r} is async; a condition is decided at send time, make it a plain function"
        )
    return _Predicate(function)


class _ForModels(Condition):
    def __init__(self, refs: tuple[ModelRef, ...]) -> None:
        self.refs = refs
        self.classes: tuple[type[Model], ...] | None = None

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        if self.classes is None:
            self.classes = tuple(apps.get_model(ref) if isinstance(ref, str) else ref for ref in self.refs)
        return isinstance(sender, type) and issubclass(sender, self.classes)

    def models(self) -> tuple[ModelRef, ...]:
        return self.refs


def only_for_models(*models: ModelRef) -> Condition:
    """Allow sends of these models, their proxies and their subclasses.

    Args:
        models: classes or labels such as `"app.Model"`; a label is resolved at its first use.

    Raises:
        RegistrationError: if no model is given, or an argument is neither a model nor a label.
    """
    if not models:
        raise RegistrationError("only_for_models() names no model; give a model class or 'app.Model'")
    for model in models:
        is_label = isinstance(model, str) and model.count(".") == 1
        if not is_label and not (isinstance(model, type) and issubclass(model, Model)):
            raise RegistrationError(f"only_for_models({model!r}): give a model class or 'app.Model'")
    for label in models:
        if isinstance(label, str):
            # Django's check reports a label that no app provides; otherwise the first send would raise.
            when_loaded(label, _do_nothing, owner=f"only_for_models({label!r})")
    return _ForModels(models)


def _do_nothing(model: type[Model]) -> None:
    pass


class _InEnvironment(Condition):
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        current = getattr(settings, "ENVIRONMENT", None)
        if current is None:
            raise ImproperlyConfigured("settings.ENVIRONMENT is not set; only_in_environment() reads it")
        return current in self.names


def only_in_environment(*names: str) -> Condition:
    """Allow sends if `settings.ENVIRONMENT`, read at each send, is one of these names.

    Raises:
        RegistrationError: if no name is given.
    """
    if not names:
        raise RegistrationError("only_in_environment() names no environment; give one such as 'production'")
    return _InEnvironment(frozenset(names))
