"""Abstract senders: an abstract model sends no signals itself, so it stands for its concrete models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.apps import apps
from django.db.models import Model
from django.db.models.signals import class_prepared


def is_abstract(sender: Any) -> bool:
    """Return whether the sender is an abstract model."""
    return isinstance(sender, type) and issubclass(sender, Model) and sender._meta.abstract


def for_each_concrete(base: type[Model], function: Callable[[type[Model]], None]) -> None:
    """Call a function with each concrete model of an abstract one, now and when another model is prepared."""

    def prepared(sender: type[Model], **kwargs: Any) -> None:
        # A migration makes models of its own, whose saves have no receivers in Django either.
        if issubclass(sender, base) and sender._meta.apps is apps:
            function(sender)

    for model in _subclasses(base):
        if not model._meta.abstract:
            prepared(model)
    class_prepared.connect(prepared, weak=False)


def _subclasses(base: type[Model]) -> Iterator[type[Model]]:
    # A model with several abstract bases is found once for each.
    found = dict.fromkeys(base.__subclasses__())
    for model in list(found):
        found.update(dict.fromkeys(_subclasses(model)))
    yield from found
