"""Stable names for signals, because Django gives them none."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from django.db.models import Model
from django.dispatch import Signal

_names: dict[int, tuple[Signal, str]] = {}


def signal_name(signal: Signal) -> str:
    """Return the dotted path of the module attribute that holds a signal.

    A signal that no module holds has its topic as its name, or its class name if it has no topic.
    """
    # The reference keeps the signal alive, so that no other object can get its id.
    known = _names.get(id(signal))
    if known is None:
        known = _names[id(signal)] = (signal, _search(signal))
    return known[1]


def signal_named(name: str) -> Signal | None:
    """Return the signal of a name, or None if there is no such signal; import its module if necessary."""
    # A name without a dot is the name of a signal that no module holds.
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        return None
    known = next((signal for signal, known in _names.values() if known == name), None)
    return known or _import(module_name, attribute)


def is_importable(signal: Signal) -> bool:
    """Return whether another process can find the signal by its name."""
    module_name, _, attribute = signal_name(signal).rpartition(".")
    return _import(module_name, attribute) is signal


def _import(module_name: str, attribute: str) -> Signal | None:
    # A name in a row must not import a package that this process has not imported yet.
    if module_name.partition(".")[0] not in sys.modules:
        return None
    try:
        found = vars(import_module(module_name)).get(attribute)
    except ImportError:
        return None
    return found if isinstance(found, Signal) else None


def topic_of(signal: Signal, sender: Any) -> str:
    """Return the topic of a send: `post_save.shop.order` if a model sends, else the signal's dotted path."""
    name = signal_name(signal)
    if isinstance(sender, type) and issubclass(sender, Model):
        return f"{name.rpartition('.')[2]}.{sender._meta.label_lower}"
    return name


def _search(signal: Signal) -> str:
    # The search runs once per signal. If several modules hold the signal, all processes must choose the same:
    # a module called `signals` first (Django's convention), then the shortest path, then the alphabet.
    paths = [
        f"{module_name}.{attribute}"
        for module_name, module in sorted(sys.modules.copy().items())
        if module_name != "__main__"
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is signal
    ]
    if not paths:
        return str(getattr(signal, "topic", type(signal).__name__.lower()))
    return min(paths, key=lambda path: (path.split(".")[-2] != "signals", path.count("."), path))
