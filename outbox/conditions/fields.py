"""The condition that compares fields with their old values in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Model

from outbox.errors import RegistrationError

from . import tracking
from .base import Condition, ModelRef, unique_names


class _FieldChanged(Condition):
    def __init__(self, names: tuple[str, ...], model: ModelRef | None) -> None:
        self.names = names
        self.model = model

    def allows(self, sender: Any, **kwargs: Any) -> bool:
        return bool(self._changes(kwargs))

    def extra(self, sender: Any, **kwargs: Any) -> dict[str, Any]:
        return {"changes": self._changes(kwargs)}

    def track(self, models: tuple[ModelRef, ...] | None) -> None:
        # only_when_field_changed() has already tracked the model of `model=`.
        if self.model is None:
            tracking.track(models, self.names)

    def _changes(self, arguments: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        instance = arguments.get("instance")
        if not isinstance(instance, Model) or arguments.get("raw"):
            return {}
        return tracking.changes(instance, self.names, arguments)


def only_when_field_changed(*fields: str, model: ModelRef | None = None) -> Condition:
    """Allow saves that change one of these fields in the database.

    The receiver gets `changes={field: (old, new)}`. The old value is the value that this instance last read
    from or wrote to the database; it costs no query.

    - The old value of a new instance is None.
    - A value is `UNKNOWN` if the field was deferred and only assigned, or if it is a database expression. The
      save counts as a change.
    - Loading a fixture (`raw`) changes nothing.
    - The values of a foreign key are primary keys.

    Old values are kept from the moment an instance is loaded. By then the models must be known, from
    `model=`, `only_for_models(…) & …`, or the `sender` of `outbox.receiver`. If none is given, the condition
    tracks every model that has one of the fields.

    Raises:
        RegistrationError: if no field is given, or if `model` lacks or generates one of them.
    """
    if not fields:
        raise RegistrationError("only_when_field_changed() names no field; give one such as 'status'")
    names = unique_names(fields)
    if model is not None:
        tracking.track((model,), names)
    return _FieldChanged(names, model)
