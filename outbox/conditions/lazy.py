"""References to models by label, which Django's check names if no app provides the model."""

from __future__ import annotations

from collections.abc import Callable

from django.apps import apps
from django.db.models import Model
from django.db.models.utils import make_model_tuple


class _Operation:
    """A function that waits for a model; Django's check `models.E022` shows it as text."""

    # The check reads the name of a function.
    __name__ = "when_loaded"

    def __init__(self, owner: str, function: Callable[[type[Model]], object]) -> None:
        self._owner = owner
        self._function = function

    def __call__(self, model: type[Model]) -> None:
        self._function(model)

    def __str__(self) -> str:
        return self._owner


def when_loaded(label: str, function: Callable[[type[Model]], object], *, owner: str) -> None:
    """Call a function with the model of a label, now or as soon as the model is loaded.

    Args:
        label: `"app.Model"`.
        owner: the name of the declaration that holds the label, for Django's check.
    """
    apps.lazy_model_operation(_Operation(owner, function), make_model_tuple(label))
